"""One run's figures against sums made by hand from a dozen handcrafted rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from bench_nodes import Bench, burn, letter
from small_runs import resolved, roles_of, rows, tables

from harness import record
from harness.node import Node
from harness.testbed import NodeInfo, Outcome
from results import idle, summary
from results.target import retarget

NAMES = ["device-0", "device-1", "edge-0", "server", "f", "up", "down", "round", "global/accuracy", "global/loss"]
D0, D1, EDGE, SERVER, F, UP, DOWN, ROUND, ACCURACY, LOSS = range(10)
DONE = record.DELIVERED


def _nodes(*, edge: bool = False, power: tuple[float | None, float | None] = (1.0, 5.0)) -> list[NodeInfo]:
    found = [NodeInfo("device-0", "device", "b", 1, *power), NodeInfo("device-1", "device", "b", 1, 2.0, 6.0)]
    if edge:
        found.append(NodeInfo("edge-0", "edge", "b", 1))
    return [*found, NodeInfo("server", "server", "b", 1)]


ARRAYS = tables(
    # node, lane, what, samples, start, end, flops, tier
    compute=rows(
        "compute",
        (D0, 0, F, 16, 0.0, 2.0, 100.0, 2),
        (D0, 0, F, 8, 3.0, 4.0, 50.0, 2),
        (D1, 0, F, 32, 0.0, 5.0, 200.0, 1),
        (SERVER, 0, F, 999, 6.0, 8.0, 7.0, 3),
    ),
    # serial, src, dst, tag, lane, connection, status, round, payload, wire, posted, started, arrived
    transfer=rows(
        "transfer",
        (0, SERVER, D0, DOWN, 0, 0, DONE, 1, 100, 110, 0.0, 0.0, 1.0),
        (1, SERVER, D1, DOWN, 0, 0, DONE, 1, 100, 120, 0.0, 0.0, 1.0),
        (2, D0, SERVER, UP, 0, 0, DONE, 1, 1000, 1003, 4.0, 4.0, 5.0),
        (3, D1, SERVER, UP, 0, 0, DONE, 2, 2000, 2005, 5.0, 5.0, 6.0),
    ),
    mark=rows(
        "mark",
        (SERVER, 0, record.ROUND_START, ROUND, 1, 0.0),
        (SERVER, 0, record.ROUND_END, ROUND, 1, 6.0),
        (SERVER, 0, record.ROUND_START, ROUND, 2, 6.0),
        (SERVER, 0, record.ROUND_END, ROUND, 2, 9.5),
        (D0, 0, record.PEAK_MEMORY, F, 4096, 10.0),
        (D1, 0, record.PEAK_MEMORY, F, 8192, 10.0),
        (SERVER, 0, record.PEAK_MEMORY, F, 12345, 10.0),
    ),
    metric=rows(
        "metric",
        (SERVER, ACCURACY, 1, 6.0, 0.5),
        (SERVER, LOSS, 1, 6.0, 1.25),
        (SERVER, ACCURACY, 2, 9.5, 0.875),
        (SERVER, LOSS, 2, 9.5, 0.75),
    ),
)
"""Ten seconds, two rounds."""

IDLE = pd.DataFrame(
    [
        # node, compute, dependency, straggler, transfer, unselected, overhead, done
        ["device-0", 3.0, 1.0, 2.0, 1.5, 0.5, 0.0, 2.0],
        ["device-1", 5.0, 2.0, 0.0, 2.0, 0.0, 0.0, 1.0],
        ["server", 2.0, 6.0, 0.0, 2.0, 0.0, 0.0, 0.0],
    ],
    columns=["node", *idle.COLUMNS],
)


def _summary(arrays=ARRAYS, outcome: Outcome | None = None, seconds: pd.DataFrame = IDLE, **changes) -> dict:
    outcome = outcome or Outcome(end_s=10.0, sent=4, consumed=4, nodes=_nodes())
    return summary.summarise(resolved(**changes), "abc", "v1", outcome, arrays, NAMES, seconds)


def test_what_a_run_is_called_comes_from_what_was_resolved() -> None:
    found = _summary(sweep={"training.rounds": 2}, target_accuracy=0.8)
    expected = {
        "run_id": "abc",
        "experiment": "by-hand",
        "label": "Mine",
        "method": "mine",
        "seed": 7,
        "mode": "timing",
        "testbed": "virtual",
        "clock": "virtual",
        "devices": 2,
        "points": [{"training.rounds": 2}],
        "claims": [],
        "target_accuracy": 0.8,
        "variant": "v1",
    }
    assert {key: found[key] for key in expected} == expected


def test_times_bytes_and_operations_are_sums_of_the_rows() -> None:
    """Bytes: up 1000 + 2000 and wire 3008, down 200 and wire 230. FLOPs: 100 + 50 + 200, and the server's 7.

    Throughput: 16 + 8 + 32 samples on devices (the server's 999 are the same samples again) in 10 s.
    """
    found = _summary()
    assert found["makespan_s"] == 10.0
    assert found["rounds"] == 2
    assert (found["payload_up_bytes"], found["wire_up_bytes"]) == (3000, 3008)
    assert (found["payload_down_bytes"], found["wire_down_bytes"]) == (200, 230)
    assert found["wire_bytes"] == 3238
    assert "payload_lan_bytes" not in found
    assert (found["device_flops"], found["server_flops"]) == (350.0, 7.0)
    assert found["throughput_samples_per_s"] == 5.6
    assert found["messages"] == 4


def test_memory_is_the_worst_devices_peak() -> None:
    found = _summary()
    assert (found["peak_device_memory_bytes"], found["peak_server_memory_bytes"]) == (8192, 12345)


def test_idle_figures_are_means_over_devices() -> None:
    """Idle of device-0: 1 + 2 + 1.5 + 0.5 = 5, of device-1: 4; mean 4.5 s, 45 % of 10 s. Done: mean of 2 and 1."""
    found = _summary()
    assert found["device_compute_s"] == 4.0
    assert found["device_idle_s"] == 4.5
    assert found["device_idle_fraction"] == 0.45
    assert found["device_idle_dependency_s"] == 1.5
    assert found["device_idle_straggler_s"] == 1.0
    assert found["device_idle_transfer_s"] == 1.75
    assert found["device_idle_unselected_s"] == 0.25
    assert found["device_idle_overhead_s"] == 0.0
    assert found["device_done_s"] == 1.5
    assert (found["server_compute_s"], found["server_idle_s"], found["server_idle_fraction"]) == (2.0, 8.0, 0.8)


def test_the_tiers_of_prices_are_named_the_firmest_first() -> None:
    found = _summary()
    assert (found["device_tier"], found["server_tier"]) == ("measured+roofline", "scalar")


def test_energy_is_load_power_while_computing_and_idle_power_else() -> None:
    """device-0: 3 s x 5 W + 7 s x 1 W = 22 J; device-1: 5 x 6 + 5 x 2 = 40 J. The server's is not counted."""
    assert _summary()["device_energy_j"] == 62.0


@pytest.mark.parametrize("power", [(None, 5.0), (1.0, None), (None, None)])
def test_energy_is_unknown_if_one_devices_power_is(power: tuple[float | None, float | None]) -> None:
    outcome = Outcome(end_s=10.0, sent=4, consumed=4, nodes=_nodes(power=power))
    assert _summary(outcome=outcome)["device_energy_j"] is None


def test_the_curve_has_every_score_and_answers_any_target() -> None:
    """The summary alone says when another target would have been reached."""
    found = _summary(target_accuracy=0.5)
    assert found["accuracy_curve"] == [[6.0, 0.5], [9.5, 0.875]]
    for target in (None, 0.5, 0.51, 0.9):
        assert retarget(found, target) == _summary(target_accuracy=target)


@pytest.mark.parametrize(
    ("target", "reached"), [(None, None), (0.4, 6.0), (0.5, 6.0), (0.51, 9.5), (0.875, 9.5), (0.9, None)]
)
def test_time_to_accuracy_is_when_the_target_was_first_reached(target: float | None, reached: float | None) -> None:
    found = _summary(target_accuracy=target)
    assert found["time_to_accuracy_s"] == reached
    assert (found["accuracy"], found["best_accuracy"]) == (0.875, 0.875)


def test_accuracy_is_the_last_and_best_accuracy_the_best_of_the_global_model() -> None:
    """Rows out of order; an auxiliary model's 0.99 is not the global model's."""
    names = [*NAMES, "auxiliary/accuracy"]
    metric = rows(
        "metric", (SERVER, ACCURACY, 3, 9.0, 0.6), (SERVER, 10, 1, 1.0, 0.99), (SERVER, ACCURACY, 2, 6.0, 0.7)
    )
    arrays = {**ARRAYS, "metric": metric}
    outcome = Outcome(end_s=10.0, sent=4, consumed=4, nodes=_nodes())
    found = summary.summarise(resolved(target_accuracy=0.65), "x", "v1", outcome, arrays, names, IDLE)
    assert (found["accuracy"], found["best_accuracy"], found["time_to_accuracy_s"]) == (0.6, 0.7, 6.0)


def test_without_metrics_quality_is_unknown() -> None:
    found = _summary({**ARRAYS, "metric": rows("metric")}, target_accuracy=0.9)
    assert (found["accuracy"], found["best_accuracy"], found["time_to_accuracy_s"]) == (None, None, None)
    assert found["accuracy_curve"] == []


def test_what_an_edge_relays_is_local_or_to_the_server() -> None:
    """Device to edge: 500 bytes on the LAN. Edge to server: 70 up. Server to edge: 30 down."""
    transfer = rows(
        "transfer",
        (0, D0, EDGE, UP, 0, 0, DONE, 1, 500, 501, 0.0, 0.0, 1.0),
        (1, EDGE, SERVER, UP, 0, 0, DONE, 1, 70, 72, 1.0, 1.0, 2.0),
        (2, SERVER, EDGE, DOWN, 0, 0, DONE, 1, 30, 33, 2.0, 2.0, 3.0),
    )
    seconds = pd.concat([IDLE, IDLE.tail(1).assign(node="edge-0")], ignore_index=True)
    outcome = Outcome(end_s=10.0, sent=3, consumed=3, nodes=_nodes(edge=True))
    found = _summary({**ARRAYS, "transfer": transfer}, outcome, seconds)
    assert (found["payload_lan_bytes"], found["wire_lan_bytes"]) == (500, 501)
    assert (found["payload_up_bytes"], found["payload_down_bytes"], found["wire_bytes"]) == (70, 30, 606)
    assert found["devices"] == 2


def test_a_run_of_no_time_divides_by_nothing() -> None:
    seconds = IDLE.assign(**dict.fromkeys(idle.COLUMNS, 0.0))
    outcome = Outcome(end_s=0.0, nodes=_nodes())
    found = _summary(tables(), outcome, seconds)
    assert (found["throughput_samples_per_s"], found["device_idle_fraction"]) == (0.0, 0.0)
    assert found["rounds"] == 0


def test_a_summary_is_plain_data() -> None:
    """No numpy number in it: JSON gives it back as it was."""
    found = _summary(target_accuracy=0.6)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_only_the_rounds_of_the_run_are_counted() -> None:
    """A device that counts its own local rounds (node.rounds, too) does not make the run longer, nor its rounds."""
    local = rows(
        "mark",
        (D0, 0, record.ROUND_START, ROUND, 1, 0.5),
        (D0, 0, record.ROUND_END, ROUND, 1, 6.5),
        (D0, 0, record.ROUND_START, ROUND, 3, 6.5),
        (D0, 0, record.ROUND_END, ROUND, 3, 7.0),
    )
    arrays = {**ARRAYS, "mark": np.concatenate([local, ARRAYS["mark"]])}
    assert _summary(arrays)["rounds"] == 2
    pd.testing.assert_frame_equal(summary.rounds(arrays, NAMES), summary.rounds(ARRAYS, NAMES))


# ---- rounds and metrics -----------------------------------------------------------------------------------------


def test_rounds_have_their_times_and_the_bytes_of_their_messages() -> None:
    """Round 1: [0, 6], 100 + 100 + 1000 bytes; round 2: [6, 9.5], 2000."""
    table = summary.rounds(ARRAYS, NAMES)
    assert table.to_dict("list") == {
        "round": [1, 2],
        "start_s": [0.0, 6.0],
        "end_s": [6.0, 9.5],
        "duration_s": [6.0, 3.5],
        "payload_bytes": [1200, 2000],
    }


def test_a_round_that_was_cut_has_no_end() -> None:
    cut = ARRAYS["mark"][ARRAYS["mark"]["at_s"] < 9]
    table = summary.rounds({**ARRAYS, "mark": cut}, NAMES)
    assert table["round"].tolist() == [1, 2]
    assert table["end_s"].isna().tolist() == [False, True]


def test_a_round_without_messages_has_no_bytes() -> None:
    table = summary.rounds({**ARRAYS, "transfer": rows("transfer")}, NAMES)
    assert table["payload_bytes"].tolist() == [0, 0]


def test_metrics_have_one_row_per_scored_model() -> None:
    table = summary.metrics(ARRAYS["metric"], NAMES)
    assert table.to_dict("list") == {
        "model": ["global", "global"],
        "round": [1, 2],
        "at_s": [6.0, 9.5],
        "accuracy": [0.5, 0.875],
        "loss": [1.25, 0.75],
    }


def test_no_metrics_have_the_same_columns() -> None:
    table = summary.metrics(rows("metric"), NAMES)
    assert list(table) == ["model", "round", "at_s", "accuracy", "loss"]
    assert len(table) == 0


def test_a_real_runs_summary_agrees_with_its_coroutines() -> None:
    """Two devices send 10 letters of 100 bytes each, one round each; the server computes 10 x 2 s one after another."""

    async def device(node: Node) -> None:
        for index in range(1, 11):
            await node.send("server", "up", letter(100), round=index)
            await node.recv("go")

    async def server(node: Node) -> None:
        for index in node.rounds(10):
            await node.gather("up", round=index)
            await node.compute(burn, 2)
            node.broadcast("go", round=index)

    bench = Bench({"device-0": device, "device-1": device, "server": server}).run()
    arrays = bench.recorder.arrays()
    seconds = idle.attribute(arrays, bench.recorder.names, roles_of(bench), bench.outcome.end_s)
    bench.outcome.nodes = _nodes()
    names = bench.recorder.names
    found = summary.summarise(resolved(), "x", "v1", bench.outcome, arrays, names, seconds)
    assert (found["makespan_s"], found["rounds"], found["messages"]) == (20.0, 10, 40)
    assert (found["payload_up_bytes"], found["payload_down_bytes"]) == (2000, 20 * 64)
    assert (found["server_idle_fraction"], found["device_idle_fraction"]) == (0.0, 1.0)
    assert summary.rounds(arrays, names)["duration_s"].tolist() == [2.0] * 10
