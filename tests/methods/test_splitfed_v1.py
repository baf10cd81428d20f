"""SplitFed V1: parallel devices, a server block for each, both halves averaged; FedAvg computed in two places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness import record
from harness.errors import ConfigError
from harness.message import HEADER_BYTES

DEVICE_BLOCK = {1: 448, 2: 19_200, 3: 56_384, 4: 89_280}
CUT = {1: 512, 2: 256, 3: 256, 4: 128}
"""Parameters + floating buffers, and floats per sample at the cut, of VGG-5 on digits: derived in test_sl."""

Runner = Callable[..., Any]
UNEQUAL = {"partition": {"kind": "dirichlet", "alpha": 0.3, "samples": 101, "min_samples": 5}}
WHOLE = {"partition": {"samples": 96}}
"""Three devices, two whole batches of 16 each."""


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["learn", "timing"])
def test_payload_bytes_of_every_kind(run: Runner, helpers: Any, mode: str, cut: int) -> None:
    """As SL's: the averages cost no bytes. n samples in m batches per round: n(4q + 8) + m up, 4qn + m down."""
    done = run({"name": "splitfed_v1", "split_point": cut}, mode=mode, task=UNEQUAL)
    assert len(set(done.sizes)) > 1
    assert any(size % 16 for size in done.sizes)
    assert done.tags() == {"weights", "update", "activation", "gradient"}
    samples = 2 * sum(done.sizes)
    batches = 2 * sum(len(helpers.batches(size, 16)) for size in done.sizes)
    blocks = 2 * 3 * (4 * DEVICE_BLOCK[cut] + HEADER_BYTES)
    assert done.payload_bytes("activation", dst="server") == samples * (4 * CUT[cut] + 8) + batches * HEADER_BYTES
    assert done.payload_bytes("gradient", src="server") == samples * 4 * CUT[cut] + batches * HEADER_BYTES
    assert done.payload_bytes("update", dst="server") == blocks
    assert done.payload_bytes("weights", src="server") == blocks + 3 * HEADER_BYTES
    assert done.payload_bytes() == 2 * blocks + samples * (8 * CUT[cut] + 8) + (2 * batches + 3) * HEADER_BYTES
    assert done.adds_up()


def test_local_steps_count_batches_across_epochs(run: Runner) -> None:
    """30 samples per device are batches of 16 and 14; 3 steps a round, 2 rounds: 16 14 16 | 14 16 14 = 90 samples."""
    done = run("splitfed_v1", training={"local_steps": 3})
    assert done.payload_bytes("activation") == 3 * (90 * (4 * CUT[1] + 8) + 6 * HEADER_BYTES)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("cut", [1, 3])
def test_one_device_is_training_the_whole_model_bit_for_bit(
    run: Runner, helpers: Any, norm: str, reset: bool, cut: int
) -> None:
    done = run(
        {"name": "splitfed_v1", "split_point": cut},
        task={"norm": norm},
        training={"reset_optimizer": reset, "optimizer": {"lr": 0.02, "weight_decay": 0.01}},
        testbed={"devices": [{"profile": "rpi-4-4g"}]},
    )
    helpers.assert_equal(done.model(), helpers.plainly_trained(done))


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_it_is_fedavg_computed_in_two_places_bit_for_bit(
    run: Runner, helpers: Any, reset: bool, weighting: str
) -> None:
    """Each device with its server copy takes FedAvg's local steps; every element is then averaged with the same
    weights in the same order, so not a bit differs, whether momentum is kept or not."""
    training = {"rounds": 3, "reset_optimizer": reset, "weighting": weighting}
    split = run({"name": "splitfed_v1", "split_point": 2}, task=UNEQUAL, training=training)
    whole = run("fedavg", task=UNEQUAL, training=training)
    assert len(set(split.sizes)) > 1
    helpers.assert_equal(split.model(), whole.model())


def test_it_is_fedavg_with_a_sample_of_the_devices_too(run: Runner, helpers: Any) -> None:
    training = {"rounds": 4, "reset_optimizer": False}
    split = run({"name": "splitfed_v1", "fraction": 0.67}, training=training)
    whole = run({"name": "fedavg", "fraction": 0.67}, training=training)
    assert len(split.devices_of_round("weights", 1)) == 2
    helpers.assert_equal(split.model(), whole.model())


@pytest.mark.parametrize("orders", [([1, 2, 8], [16, 2, 1]), ([1, 1, 1], [4, 1, 2])])
def test_who_is_faster_leaves_it_unchanged(run: Runner, helpers: Any, board: Any, orders: Any) -> None:
    first, second = (
        run("splitfed_v1", testbed={"devices": [{"profile": board(s)} for s in order]}) for order in orders
    )
    assert first.outcome.end_s != second.outcome.end_s
    helpers.assert_equal(first.model(), second.model())


def test_who_is_faster_leaves_it_unchanged_with_dropout_too(
    run: Runner, helpers: Any, board: Any, dropout_model: str
) -> None:
    """Dropout in the server's copies must not be drawn in the order in which the devices happen to arrive."""
    first, second = (
        run("splitfed_v1", task={"model": dropout_model}, testbed={"devices": [{"profile": board(s)} for s in order]})
        for order in ([1, 2, 8], [16, 2, 1])
    )
    assert first.outcome.end_s != second.outcome.end_s
    helpers.assert_equal(first.model(), second.model())


def test_a_round_is_about_its_slowest_device_when_the_server_is_fast(run: Runner, board: Any) -> None:
    """Links cost nothing: max_k (device k) <= round <= max_k (device k) + all the server's computing."""
    done = run(
        "splitfed_v1",
        mode="timing",
        task=WHOLE,
        training={"rounds": 1},
        testbed={"devices": [{"profile": board(s)} for s in (1, 2, 4)], "server": {"profile": board(2**-14)}},
    )
    own = [done.seconds(device) for device in done.devices]
    (length,) = done.round_seconds()
    assert max(own) < length <= max(own) + done.seconds("server")
    assert length < 1.01 * max(own) < 0.6 * sum(own)


def test_a_slow_server_bounds_the_round_from_below(run: Runner, board: Any) -> None:
    """The copies share one processor: a round takes at least all that the server serves."""
    done = run(
        "splitfed_v1",
        mode="timing",
        task=WHOLE,
        training={"rounds": 1},
        testbed={"devices": [{"profile": board(1), "count": 3}], "server": {"profile": board(64)}},
    )
    assert done.round_seconds()[0] >= done.seconds("server", "serve") > max(map(done.seconds, done.devices))


def test_timing_mode_takes_the_time_that_learning_takes(run: Runner) -> None:
    timed, learned = (run("splitfed_v1", mode=mode, task=WHOLE) for mode in ("timing", "learn"))
    assert timed.outcome.end_s == learned.outcome.end_s


def test_who_is_not_chosen_gets_nothing_in_that_round(run: Runner) -> None:
    done = run(
        {"name": "splitfed_v1", "fraction": 0.5},
        training={"rounds": 4},
        testbed={"devices": [{"profile": "rpi-4-4g", "count": 4}]},
    )
    for index in range(1, 5):
        chosen = done.devices_of_round("weights", index)
        assert len(chosen) == 2
        assert done.devices_of_round("gradient", index) == chosen
        assert {done.names[src] for src in done.rows("transfer", tag="activation", round=index)["src"]} == chosen


@pytest.mark.parametrize("share", [0.05, 0.3, 0.45, 0.6, 0.8])
def test_the_run_goes_on_without_a_device_that_dies(run: Runner, share: float) -> None:
    healthy = run("splitfed_v1", training={"rounds": 4})
    at_s = share * healthy.outcome.end_s
    done = run("splitfed_v1", training={"rounds": 4}, testbed={"faults": [{"node": "device-1", "at_s": at_s}]})
    assert len(done.rows("transfer", tag="update", src="device-0", status=0)) == 4
    assert len(done.rows("transfer", tag="update", src="device-1", status=0)) < 4
    assert not (done.rows("transfer", src="device-1")["posted_s"] > at_s).any()
    assert [index for _, index, _ in done.evaluated] == [1, 2, 3, 4]
    assert done.adds_up()


def test_a_device_that_comes_back_takes_part_from_the_next_round_on(run: Runner) -> None:
    """It dies in the middle of round 2 of 6 and is back in the middle of round 4: it misses the updates 2, 3, 4."""

    def middle(index: int, *faults: dict[str, Any]) -> float:
        done = run("splitfed_v1", training={"rounds": 6}, testbed={"faults": list(faults)})
        starts = done.rows("mark", node="server", kind=record.ROUND_START)["at_s"]
        return float((starts[index - 1] + starts[index]) / 2)

    fault: dict[str, Any] = {"node": "device-1", "at_s": middle(2)}
    fault["rejoin_s"] = middle(4, fault)  # rounds without it are shorter
    done = run("splitfed_v1", training={"rounds": 6}, testbed={"faults": [fault]})
    assert done.rows("transfer", tag="update", src="device-1", status=0)["round"].tolist() == [1, 5, 6]
    assert len(done.rows("transfer", tag="update", src="device-0")) == 6
    assert done.adds_up()


def test_a_device_that_is_back_before_the_server_looked_does_not_hang_the_run(run: Runner, board: Any) -> None:
    """It dies and returns while the server computes on its activation: its round is lost, the run is not."""
    settings = {"testbed": {"devices": [{"profile": board(1), "count": 2}], "server": {"profile": board(64)}}}
    healthy = run("splitfed_v1", **settings)
    begun, ended = healthy.rows("compute", node="server", what="serve")[["start_s", "end_s"]][0]
    fault = {"node": "device-0", "at_s": (3 * begun + ended) / 4, "rejoin_s": (begun + ended) / 2}
    settings["testbed"]["faults"] = [fault]
    done = run("splitfed_v1", **settings)
    assert [index for _, index, _ in done.evaluated] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"split_point": 0}, r"methods\[0\]\.split_point: .* greater than or equal to 1"),
        ({"fraction": 0}, r"methods\[0\]\.fraction: .* greater than 0"),
        ({"fraction": 1.5}, r"methods\[0\]\.fraction: .* less than or equal to 1"),
        ({"order": "fifo"}, r"methods\[0\]\.order: unknown key"),
    ],
)
def test_wrong_settings_are_refused_by_place(run: Runner, settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        run({"name": "splitfed_v1", **settings})
