"""Recorded behaviour of links and devices, read from files in the forms in which it is published.

    lines.py          a text file (gzip or not) as numbered lines, or the error that names one
    intervals.py      steps one after the other, without holes, into a RateTrace
    table.py          CSV of many traces: source, trace, mode, t_ms, duration_ms, down_kbps, up_kbps
    mahimahi.py       one millisecond per delivery opportunity of 1500 bytes
    pensieve.py       "seconds Mbit/s" per line
    fedscale.py       one constant rate per client
    plain.py          JSON, CSV or pickles of plain values; nothing in them is executed
    availability.py   when a device is there
    library.py        the traces of a file, by format

No data are shipped: see docs/traces.md for where they are and under which terms.
"""
