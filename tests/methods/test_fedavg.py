"""FedAvg: what crosses the link, what it costs in time, and that it is ordinary training where it must be.

VGG-5's parameters + floating buffers on digits [1, 8, 8], by hand (convolution: in x out x 9 + out; batch norm:
2 x out parameters, 2 x out buffers):

    conv1      1 x 32 x 9 + 32 + 4 x 32 =    448
    conv2     32 x 64 x 9 + 64 + 4 x 64 = 18,752
    conv3     64 x 64 x 9 + 64 + 4 x 64 = 37,184
    fc1      64 x 2 x 2 x 128 + 128     = 32,896
    fc2               128 x 10 + 10     =  1,290      together 90,570
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.errors import ConfigError, PeerLost
from harness.message import HEADER_BYTES

VGG5_DIGITS = 448 + 18_752 + 37_184 + 32_896 + 1_290
VGG5_CIFAR = 582_346 + 2 * (32 + 64 + 64)
"""582,346 parameters is the count of the public code's VGG-5; batch norm adds its two buffers."""

Runner = Callable[..., Any]
UNEQUAL = {"partition": {"kind": "dirichlet", "alpha": 0.3, "samples": 101, "min_samples": 5}}


# ---- bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["learn", "timing"])
def test_payload_is_one_model_each_way_per_round_and_device(run: Runner, mode: str) -> None:
    """Per direction: rounds x devices x (4 x 90,570 + header); and one header per device closes `weights`."""
    done = run("fedavg", mode=mode, task=UNEQUAL, training={"rounds": 3})
    assert len(set(done.sizes)) > 1
    assert done.tags() == {"weights", "update"}
    models = 3 * 3 * (4 * VGG5_DIGITS + HEADER_BYTES)
    assert done.payload_bytes("update", dst="server") == models
    assert done.payload_bytes("weights", src="server") == models + 3 * HEADER_BYTES
    assert done.payload_bytes() == 2 * models + 3 * HEADER_BYTES
    assert done.adds_up()


def test_payload_on_cifar_shapes_agrees_with_the_known_parameter_count(run: Runner) -> None:
    done = run("fedavg", mode="timing", task={"data": "cifar10"}, training={"rounds": 1})
    assert done.payload_bytes("update") == 3 * (4 * VGG5_CIFAR + HEADER_BYTES)


def test_local_batch_norm_keeps_the_running_statistics_at_home(run: Runner) -> None:
    done = run("fedavg", training={"rounds": 1, "batch_norm": "local"})
    assert done.payload_bytes("update") == 3 * (4 * (VGG5_DIGITS - 320) + HEADER_BYTES)


def test_wire_bytes_are_payload_bytes_without_framing_and_more_with_it(run: Runner) -> None:
    bare = run("fedavg", mode="timing").tables["transfer"]
    assert (bare["wire_bytes"] == bare["payload_bytes"]).all()
    framed = run("fedavg", mode="timing", testbed={"framing": "tls"}).tables["transfer"]
    assert (framed["payload_bytes"] == bare["payload_bytes"]).all()
    assert (framed["wire_bytes"] > bare["wire_bytes"]).all()


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("reset", [True, False])
def test_one_device_is_ordinary_training_bit_for_bit(run: Runner, helpers: Any, norm: str, reset: bool) -> None:
    """90 samples in batches of 16: five whole and one of 10, twice a round, two rounds."""
    done = run(
        "fedavg",
        task={"norm": norm},
        training={"local_epochs": 2, "reset_optimizer": reset, "optimizer": {"lr": 0.02, "weight_decay": 0.01}},
        testbed={"devices": [{"profile": "rpi-4-4g"}]},
    )
    helpers.assert_equal(done.model(), helpers.plainly_trained(done))


def test_keeping_momentum_is_another_method_than_forgetting_it(run: Runner, helpers: Any) -> None:
    kept = run("fedavg", training={"reset_optimizer": False}).model()
    assert helpers.differ(kept, run("fedavg").model())


def test_the_average_of_one_round_is_weighted_by_samples(run: Runner, helpers: Any) -> None:
    """w = sum_k (n_k / n) w_k with every w_k trained plainly; uniform: sum_k w_k / K. Sums in device order."""
    for weighting in ("samples", "uniform"):
        done = run("fedavg", task=UNEQUAL, training={"rounds": 1, "weighting": weighting})
        trained = [helpers.plainly_trained(done, client) for client in range(3)]
        total = sum(done.sizes)
        shares = [size / total if weighting == "samples" else 1 / 3 for size in done.sizes]
        expected = {name: trained[0][name] * shares[0] for name in trained[0]}
        for share, model in zip(shares[1:], trained[1:], strict=True):
            for name, value in model.items():
                expected[name] = expected[name].add(value, alpha=share)
        helpers.assert_equal(done.model(), expected)


def test_weights_do_not_depend_on_speeds(run: Runner, helpers: Any, board: Any, dropout_model: str) -> None:
    first, second = (
        run("fedavg", task={"model": dropout_model}, testbed={"devices": [{"profile": board(s)} for s in order]})
        for order in ([1, 2, 8], [16, 1, 2])
    )
    assert first.outcome.end_s != second.outcome.end_s
    helpers.assert_equal(first.model(), second.model())


# ---- time --------------------------------------------------------------------------------------------------------


def test_a_round_is_its_slowest_device_and_the_average(run: Runner, board: Any) -> None:
    """Links cost nothing: round = max_k (device k's computing) + averaging, to rounding errors."""
    done = run(
        "fedavg",
        mode="timing",
        training={"rounds": 1},
        testbed={"devices": [{"profile": board(s)} for s in (1, 2, 4)], "server": {"profile": board(1)}},
    )
    slowest = max(done.seconds(device) for device in done.devices)
    assert slowest == pytest.approx(done.seconds("device-2"), abs=0)
    assert done.round_seconds() == pytest.approx([slowest + done.seconds("server", "weighted_average")], rel=1e-12)


def test_doubling_the_slowest_device_stretches_the_round_by_its_own_time(run: Runner, board: Any) -> None:
    def with_slowest(slowness: float) -> Any:
        profiles = [{"profile": board(s)} for s in (1, 1, slowness)]
        return run("fedavg", mode="timing", testbed={"devices": profiles})

    once, twice = with_slowest(4), with_slowest(8)
    own = once.seconds("device-2") / 2
    assert twice.seconds("device-2") == pytest.approx(2 * once.seconds("device-2"), rel=1e-12)
    assert twice.seconds("device-0") == pytest.approx(once.seconds("device-0"), rel=1e-12)
    assert twice.round_seconds() == pytest.approx([s + own for s in once.round_seconds()], rel=1e-12)


def test_a_round_on_a_slow_link_by_hand(run: Runner) -> None:
    """One device, 16 Mb/s down and 8 Mb/s up = 2 and 1 bytes/us, 10 ms one way, server without limit.

    A message is 4 x 90,570 + 64 = 362,344 bytes: 0.181172 s down, 0.362344 s up, plus 0.01 s each.
    """
    done = run(
        "fedavg",
        mode="timing",
        training={"rounds": 1},
        testbed={
            "devices": [{"profile": "rpi-4-4g"}],
            "network": {"up_bps": 8e6, "down_bps": 16e6, "latency_s": 0.01},
        },
    )
    computed = done.seconds("device-0") + done.seconds("server", "weighted_average")
    assert done.round_seconds() == pytest.approx([0.181172 + 0.362344 + 0.02 + computed], rel=1e-12)


# ---- participation -----------------------------------------------------------------------------------------------


def test_who_is_not_chosen_gets_nothing_in_that_round(run: Runner) -> None:
    settings = {
        "mode": "timing",
        "training": {"rounds": 6},
        "testbed": {"devices": [{"profile": "rpi-4-4g", "count": 4}]},
    }
    half = {"name": "fedavg", "fraction": 0.5}
    done, again, other = run(half, **settings), run(half, **settings), run(half, seed=2, **settings)
    chosen = [done.devices_of_round("weights", index) for index in range(1, 7)]
    assert [len(devices) for devices in chosen] == [2] * 6
    assert len({frozenset(devices) for devices in chosen}) > 1
    for index, devices in enumerate(chosen, start=1):
        senders = {done.names[src] for src in done.rows("transfer", tag="update", round=index)["src"]}
        assert senders == devices
    assert [again.devices_of_round("weights", index) for index in range(1, 7)] == chosen
    assert [other.devices_of_round("weights", index) for index in range(1, 7)] != chosen


def test_every_method_that_samples_devices_chooses_the_same(run: Runner) -> None:
    settings = {"mode": "timing", "training": {"rounds": 4}, "task": {"partition": {"samples": 64}}}
    bed = {"devices": [{"profile": "rpi-4-4g", "count": 4}]}
    chosen = {
        name: tuple(frozenset(done.devices_of_round("weights", index)) for index in range(1, 5))
        for name in ("fedavg", "splitfed_v1", "splitfed_v2", "ampere")
        for done in [run({"name": name, "fraction": 0.5}, testbed=bed, **settings)]
    }
    assert len(set(chosen.values())) == 1


def test_the_average_is_of_the_chosen_only(run: Runner, helpers: Any) -> None:
    """One device of three is chosen in the only round: the global model is that device's, n_k / n_k = 1."""
    done = run({"name": "fedavg", "fraction": 0.34}, training={"rounds": 1})
    (chosen,) = done.devices_of_round("weights", 1)
    helpers.assert_equal(done.model(), helpers.plainly_trained(done, done.devices.index(chosen)))


# ---- devices that die --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.8])
def test_the_run_goes_on_without_a_device_that_dies(run: Runner, share: float) -> None:
    healthy = run("fedavg", mode="timing", training={"rounds": 4})
    at_s = share * healthy.outcome.end_s
    done = run("fedavg", training={"rounds": 4}, testbed={"faults": [{"node": "device-1", "at_s": at_s}]})
    assert len(done.rows("transfer", tag="update", src="device-0")) == 4
    assert len(done.rows("transfer", tag="update", src="device-1", status=0)) < 4
    assert not (done.rows("transfer", src="device-1")["posted_s"] > at_s).any()
    assert [index for _, index, _ in done.evaluated] == [1, 2, 3, 4]
    assert done.adds_up()


def test_a_device_that_comes_back_takes_part_from_the_next_round_on(run: Runner) -> None:
    """It dies in the middle of round 2 of 6 and is back in the middle of round 4: it misses the updates 2, 3, 4."""
    healthy = run("fedavg", mode="timing", training={"rounds": 6})
    starts = healthy.rows("mark", node="server", kind=0)["at_s"]
    half = (starts[1] - starts[0]) / 2
    fault = {"node": "device-1", "at_s": starts[1] + half, "rejoin_s": starts[3] + half}
    done = run("fedavg", training={"rounds": 6}, testbed={"faults": [fault]})
    came = done.rows("transfer", tag="update", src="device-1", status=0)["round"].tolist()
    assert came == [1, 5, 6]
    assert len(done.rows("transfer", tag="update", src="device-0")) == 6
    assert done.adds_up()


def test_without_any_device_left_the_run_is_no_result(run: Runner) -> None:
    faults = [{"node": f"device-{number}", "at_s": 1e-3} for number in range(3)]
    with pytest.raises(PeerLost, match="every device is gone"):
        run("fedavg", testbed={"faults": faults})


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"fraction": 0}, r"methods\[0\]\.fraction: .* greater than 0"),
        ({"fraction": 1.01}, r"methods\[0\]\.fraction: .* less than or equal to 1"),
        ({"fractions": 1}, r"methods\[0\]\.fractions: unknown key; did you mean 'fraction'"),
        ({"split_point": 1}, r"methods\[0\]\.split_point: unknown key"),
    ],
)
def test_wrong_settings_are_refused_by_place(run: Runner, settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        run({"name": "fedavg", **settings})
