"""The paper's figures, drawn from tables of finished runs; nothing here recomputes or trains.

Figures (one file each: TITLE, NEEDS, available(tables), draw(tables); a new file is a new figure)

    time_to_accuracy      accuracy against time, one line per method, the target and when it was reached
    accuracy_by_round     accuracy against communication rounds
    bytes_by_kind         payload per method, stacked by kind of message, uplink and downlink side by side
    idle_by_cause         where the makespan goes: computing, or idle and why; devices and server
    timeline              Gantt chart of one round: who computes what, and what is on the links
    device_count_sweep    makespan and throughput against the number of devices
    bandwidth_sweep       makespan and throughput against the bandwidth of the links
    reductions            claims: what a paper reports as a line, ours against a swept number
    summary_bars          the headline: accuracy, makespan, payload, device idle time

What they share

    tables                Tables: the data frames a figure is drawn from, and their columns
    gallery               finds the figures; names(), draw_all(tables, folder)
    style                 sizes, colours, markers and hatches; save(figure, folder, name)
    ammeter.mplstyle      the one style file
    selection             which runs of a sweep a figure without a swept axis shows
    statistics            means and 95 % confidence intervals over seeds
    curves, bars, sweeps  what figures of one family have in common
    units                 seconds, bytes and percentages as people write them

Importing this package imports no torch.
"""
