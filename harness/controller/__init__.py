"""Conducts a run on real nodes: what every real testbed shares above its workers.

conductor   a run from the first worker's start to the last one's end
members     what is known of each node: its connection, its state, its records
losses      who is lost, who is to blame, and what `on_loss` says to that
progress    whether anything moves
alignment   one clock for all nodes
preflight   are links and processors what they are to be
collecting  the nodes' rows become the run's
emulator    what a testbed does for a run: processes, throttles
settings    how a run is conducted
"""
