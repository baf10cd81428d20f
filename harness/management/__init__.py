"""The connection between the controller of a run and its workers, on a network of its own.

note        what they tell each other as bytes: msgpack, checked, never unpickled
connection  notes both ways over mutual TLS: in order, without acknowledgements
"""
