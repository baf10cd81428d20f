"""The verbs of the `ammeter` command: one file each, found by name.

A verb's module has HELP (one line), `arguments(parser)` and `main(args) -> int`.
"""
