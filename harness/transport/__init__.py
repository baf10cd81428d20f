"""The transport of the real testbeds: frames over TCP, mutual TLS, pacing. What crosses the wire is never unpickled.

frame            a message as bytes: prefix, msgpack header, raw tensor buffers; and back, refusing by name
assembler        frames out of a stream of reads, straight into the memory that becomes the tensors
acknowledgement  what a receiver answers
outgoing         one channel's sending end: FIFO
incoming         one channel's receiving end
endpoint         connect and listen
tls              a certificate authority for one run; contexts for both sides
limiter          a token bucket per direction, and a delay, by the wall clock
"""
