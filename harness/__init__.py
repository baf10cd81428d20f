"""Ammeter's core: everything that knows no method and no machine.

    errors      the error tree
    node        the Node: all that a method may do
    message     messages, payload sizes, the freeze check
    driver      what a testbed must provide below a Node
    method      a method is a module: Config, roles, ROLES, ENDS
    task        models, data, partitions, trainers: what is learned
    cost        tracing a computation operator by operator
    record      rows of intervals and transfers, and their schema on disk
    experiment  experiment files: validation, overrides, sweeps, identity
    run         one run: method + task + testbed -> records
    cli         the verbs

Importing this package imports no torch: `results` and `plots` depend on it.
"""
