"""Conducts a run on real nodes: what every real testbed shares above its workers.

conductor   a run from the first worker's start to the last one's end
course      how far it is: phase, clock, what has stopped it
members     what is known of each node: its connection, its state, its records
reception   where workers come in, and who is told what they say
readying    what a node goes through before it takes part
watch       who dies in silence, and whether anything moves (progress)
losses      what `on_loss` says to a node that is gone; who is to blame (blame)
alignment   one clock for all nodes
preflight   are links and processors what they are to be
collecting  the nodes' rows become the run's
report      what the record says beside them
emulator    what a testbed does for a run: processes, throttles
settings    how a run is conducted
tasks       coroutines beside each other
"""
