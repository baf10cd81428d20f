"""What the testbeds on the wall clock share, above the controller and below each testbed's own.

config    the settings that all of them have
pace      what a computation costs on the emulated board
targets   what links and steps are to be
run       one run, from its spec to its rows
"""
