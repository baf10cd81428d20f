"""What all testbeds' `testbed:` sections share: devices, server, edges, and the networks between them.

sections    groups of nodes, links by their figures, traces
config      `Fleet`, the settings that every testbed's Config has, and their check
recorded    the traces that the section names, drawn per node from the seed
schedule    a trace as one link plays it
links       what every node's network gives it
timings     times of computations that a real testbed measured
"""
