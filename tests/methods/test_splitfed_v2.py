"""SplitFed V2: V1's messages, one server block for everybody; in which order batches are served decides its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness import method
from harness.errors import ConfigError
from harness.message import HEADER_BYTES

DEVICE_BLOCK = {1: 448, 2: 19_200, 3: 56_384, 4: 89_280}
CUT = {1: 512, 2: 256, 3: 256, 4: 128}
"""Parameters + floating buffers, and floats per sample at the cut, of VGG-5 on digits: derived in test_sl."""

Runner = Callable[..., Any]
ORDERS = ["fifo", "round_robin", "random", "per_device_epoch"]
UNEQUAL = {"partition": {"kind": "dirichlet", "alpha": 0.3, "samples": 101, "min_samples": 5}}
FAST_FIRST, FAST_LAST = [1, 2, 8], [16, 2, 1]


def served(done: Any) -> list[str]:
    """The devices in the order in which the server sent gradients."""
    gradients = done.rows("transfer", tag="gradient")
    return [done.names[dst] for dst in gradients["dst"][gradients["serial"].argsort(kind="stable")]]


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["learn", "timing"])
def test_payload_bytes_of_every_kind_are_those_of_v1(run: Runner, helpers: Any, mode: str, cut: int) -> None:
    done = run({"name": "splitfed_v2", "split_point": cut}, mode=mode, task=UNEQUAL)
    assert len(set(done.sizes)) > 1
    samples = 2 * sum(done.sizes)
    batches = 2 * sum(len(helpers.batches(size, 16)) for size in done.sizes)
    blocks = 2 * 3 * (4 * DEVICE_BLOCK[cut] + HEADER_BYTES)
    assert done.tags() == {"weights", "update", "activation", "gradient"}
    assert done.payload_bytes("activation", dst="server") == samples * (4 * CUT[cut] + 8) + batches * HEADER_BYTES
    assert done.payload_bytes("gradient", src="server") == samples * 4 * CUT[cut] + batches * HEADER_BYTES
    assert done.payload_bytes("update", dst="server") == blocks
    assert done.payload_bytes("weights", src="server") == blocks + 3 * HEADER_BYTES
    assert done.adds_up()


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_changes_no_byte(run: Runner, order: str) -> None:
    done, v1 = run({"name": "splitfed_v2", "order": order}, task=UNEQUAL), run("splitfed_v1", task=UNEQUAL)
    for tag in ("weights", "update", "activation", "gradient"):
        assert done.payload_bytes(tag) == v1.payload_bytes(tag)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reset", [True, False])
def test_one_device_is_training_the_whole_model_bit_for_bit(
    run: Runner, helpers: Any, norm: str, order: str, reset: bool
) -> None:
    done = run(
        {"name": "splitfed_v2", "split_point": 2, "order": order},
        task={"norm": norm},
        training={"reset_optimizer": reset, "optimizer": {"lr": 0.02, "weight_decay": 0.01}},
        testbed={"devices": [{"profile": "rpi-4-4g"}]},
    )
    helpers.assert_equal(done.model(), helpers.plainly_trained(done))


def test_one_device_is_sl_and_v1_and_v2_alike(run: Runner, helpers: Any) -> None:
    bed = {"devices": [{"profile": "rpi-4-4g"}]}
    models = [run(name, testbed=bed).model() for name in ("sl", "splitfed_v1", "splitfed_v2", "fedavg")]
    for model in models[1:]:
        helpers.assert_equal(models[0], model)


def test_several_devices_are_neither_v1_nor_sl(run: Runner, helpers: Any) -> None:
    models = [run(name).model() for name in ("sl", "splitfed_v1", "splitfed_v2")]
    assert helpers.differ(models[2], models[0])
    assert helpers.differ(models[2], models[1])


def test_served_in_turn_by_hand(run: Runner) -> None:
    """60 iid samples: 20 per device, batches 16 and 4. One batch per device in turn; or a device's whole round."""
    task, training = {"partition": {"samples": 60}}, {"rounds": 1}
    a, b, c = "device-0", "device-1", "device-2"
    in_turn = run({"name": "splitfed_v2", "order": "round_robin"}, task=task, training=training)
    assert served(in_turn) == [a, b, c, a, b, c]
    in_blocks = run({"name": "splitfed_v2", "order": "per_device_epoch"}, task=task, training=training)
    assert served(in_blocks) == [a, a, b, b, c, c]


def test_in_turn_skips_who_is_finished(run: Runner, helpers: Any) -> None:
    """Unequal shards: while several have batches left they alternate, then the last ones go on alone."""
    done = run({"name": "splitfed_v2", "order": "round_robin"}, task=UNEQUAL, training={"rounds": 1, "batch_size": 4})
    left = {name: len(helpers.batches(size, 4)) for name, size in zip(done.devices, done.sizes, strict=True)}
    assert len(set(left.values())) > 1
    expected, waiting, turn = [], list(left), 0
    while waiting:
        name = waiting[turn]
        expected.append(name)
        left[name] -= 1
        if left[name]:
            turn = (turn + 1) % len(waiting)
        else:
            waiting.remove(name)
            turn = turn % len(waiting) if waiting else 0
    assert served(done) == expected


def test_first_come_first_served_depends_on_who_is_faster(run: Runner, helpers: Any, board: Any) -> None:
    first, second = (
        run("splitfed_v2", testbed={"devices": [{"profile": board(s)} for s in order]})
        for order in (FAST_FIRST, FAST_LAST)
    )
    assert served(first)[0] == "device-0"
    assert served(second)[0] == "device-2"
    assert helpers.differ(first.model(), second.model())


@pytest.mark.parametrize("order", ["round_robin", "random", "per_device_epoch"])
def test_every_other_order_does_not(run: Runner, helpers: Any, board: Any, dropout_model: str, order: str) -> None:
    first, second = (
        run(
            {"name": "splitfed_v2", "order": order},
            task={"model": dropout_model},
            testbed={"devices": [{"profile": board(s)} for s in speeds]},
        )
        for speeds in (FAST_FIRST, FAST_LAST)
    )
    assert first.outcome.end_s != second.outcome.end_s
    assert served(first) == served(second)
    helpers.assert_equal(first.model(), second.model())


def test_the_orders_give_different_weights(run: Runner, helpers: Any) -> None:
    settings = {"training": {"rounds": 1, "batch_size": 8}}
    models = [run({"name": "splitfed_v2", "order": order}, **settings).model() for order in ORDERS[1:]]
    assert helpers.differ(models[0], models[1])
    assert helpers.differ(models[0], models[2])
    assert helpers.differ(models[1], models[2])


def test_only_the_default_order_is_announced_as_dependent_on_speeds() -> None:
    loaded = method.load("splitfed_v2")
    told = {order: loaded.synchronous(loaded.config(order=order)) for order in ORDERS}  # type: ignore[call-arg]
    assert told == {"fifo": False, "round_robin": True, "random": True, "per_device_epoch": True}
    assert loaded.synchronous(loaded.config()) is False


def test_a_round_takes_as_long_as_the_slower_of_server_and_devices(run: Runner, board: Any) -> None:
    """V2 ~ max(device path, K x server time); both bounds from below, their sum from above."""
    for slowness in (2**-10, 1, 64):
        done = run(
            "splitfed_v2",
            mode="timing",
            task={"partition": {"samples": 96}},
            training={"rounds": 1},
            testbed={"devices": [{"profile": board(1), "count": 3}], "server": {"profile": board(slowness)}},
        )
        path, server = max(map(done.seconds, done.devices)), done.seconds("server", "serve")
        assert max(path, server) < done.round_seconds()[0] < path + done.seconds("server")


def test_who_is_not_chosen_gets_nothing_in_that_round(run: Runner) -> None:
    bed = {"devices": [{"profile": "rpi-4-4g", "count": 4}]}
    done = run({"name": "splitfed_v2", "fraction": 0.5}, training={"rounds": 4}, testbed=bed)
    for index in range(1, 5):
        chosen = done.devices_of_round("weights", index)
        assert len(chosen) == 2
        assert done.devices_of_round("gradient", index) == chosen


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.45, 0.6, 0.8])
def test_the_run_goes_on_without_a_device_that_dies(run: Runner, order: str, share: float) -> None:
    healthy = run({"name": "splitfed_v2", "order": order}, training={"rounds": 4})
    fault = {"node": "device-1", "at_s": share * healthy.outcome.end_s}
    done = run({"name": "splitfed_v2", "order": order}, training={"rounds": 4}, testbed={"faults": [fault]})
    assert len(done.rows("transfer", tag="update", src="device-0", status=0)) == 4
    assert len(done.rows("transfer", tag="update", src="device-1", status=0)) < 4
    assert [index for _, index, _ in done.evaluated] == [1, 2, 3, 4]
    assert done.adds_up()


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"split_point": 0}, r"methods\[0\]\.split_point: .* greater than or equal to 1"),
        ({"fraction": 0}, r"methods\[0\]\.fraction: .* greater than 0"),
        ({"order": "fixed"}, r"methods\[0\]\.order: .*'fifo'"),
    ],
)
def test_wrong_settings_are_refused_by_place(run: Runner, settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        run({"name": "splitfed_v2", **settings})
