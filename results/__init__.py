"""What a run left behind, and what can be derived from it. Imports no torch.

events      a run's rows as data frames, to and from Parquet
idle        every second of every node blamed on its cause
checks      invariants: a run that does not add up is broken
summary     one run in one record, and its rounds
store       run folders: written whole or not at all
finish      from a run's rows to its folder
target      when a target accuracy was reached
disk        files written whole; the disk's refusals in one sentence
tables      many runs as tables; formats
claims      what papers report beside what runs give
trace       the timeline as Chrome trace JSON
environment the host and the versions a run was made with
"""

FORMATS = ("csv", "json", "md", "latex")
"""What a table can be written as (results.tables.written)."""
