"""profiles/price.py: what work costs, by hand; what must hold for any work; and which tier a price is of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cost.work import PHASES, Kind, Operators, Work
from profiles import library
from profiles.device import DeviceProfile, MeasuredStep
from profiles.price import Tier, basis, price, seconds

BOARD = DeviceProfile(
    id="board",
    title="",
    processor="cpu",
    cores=4,
    memory_bytes=2**30,
    conv_flops_per_s=100.0,
    matmul_flops_per_s=200.0,
    depthwise_flops_per_s=10.0,
    depthwise_backward_flops_per_s=20.0,
    memory_bytes_per_s=50.0,
)
SCALAR = DeviceProfile(id="scalar", title="", processor="cpu", cores=4, memory_bytes=2**30, flops_per_s=100.0)
RATES: dict[Kind, float] = {"conv": 100, "matmul": 200, "depthwise": 10, "depthwise_backward": 20}


def one(kind: Kind, flops: float = 0.0, moved: float = 0.0, count: int = 1) -> Work:
    return Work((Operators(kind, "forward", flops, moved, count),))


def step(network: str = "net 3x8x8", batch: int = 8, step_s: float = 3.0, roofline_s: float = 2.0) -> MeasuredStep:
    return MeasuredStep(network=network, batch=batch, step_s=step_s, roofline_s=roofline_s)


# ---- roofline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rate"), RATES.items())
def test_convolutions_and_products_cost_their_flops(kind: Kind, rate: float) -> None:
    assert price(one(kind, 400.0, 1e6), BOARD).seconds == 400 / rate


def test_everything_else_costs_its_bytes() -> None:
    assert price(one("memory", 0.0, 400.0), BOARD).seconds == 8.0


def test_a_product_is_not_faster_than_its_bytes() -> None:
    roofed = replace(BOARD, stream_bytes_per_s=25.0)
    assert price(one("matmul", 400.0, 100.0), roofed).seconds == 4.0
    assert price(one("matmul", 4000.0, 100.0), roofed).seconds == 20.0
    assert price(one("memory", 0.0, 100.0), roofed).seconds == 2.0  # has its own rate


def test_every_operator_has_its_overhead() -> None:
    slow = replace(BOARD, operator_s=0.5)
    assert price(one("conv", 100.0, count=4), slow).seconds == 4 * 1.5
    assert price(Work(), slow).seconds == 0


def test_phases_are_the_whole() -> None:
    groups = tuple(Operators("conv", phase, 100.0 * (i + 1), 0.0) for i, phase in enumerate(PHASES))
    found = price(Work(groups), BOARD)
    assert found.phases == {"forward": 1.0, "backward": 2.0, "update": 3.0}
    assert found.seconds == 6.0


# ---- tiers ------------------------------------------------------------------------------------------------------


def test_a_scalar_prices_flops_alone() -> None:
    found = price(Work((Operators("conv", "forward", 300.0, 9e9), Operators("memory", "forward", 0.0, 9e9))), SCALAR)
    assert (found.seconds, found.tier) == (3.0, "scalar")


def test_a_measured_step_scales_the_roofline() -> None:
    measured = replace(BOARD, measured=(step(),))
    work = replace(one("conv", 400.0), network="net 3x8x8")
    found = price(work, measured, batch=8)
    assert (found.seconds, found.tier) == (6.0, "measured")
    assert found.phases == {"forward": 6.0}
    assert price(work, BOARD, batch=8).tier == "roofline"


@pytest.mark.parametrize("network", ["", "other 3x8x8", "net 3x16x16"])
def test_a_step_of_another_network_or_shape_scales_nothing(network: str) -> None:
    measured = replace(BOARD, measured=(step(),))
    found = price(replace(one("conv", 400.0), network=network), measured, batch=8)
    assert (found.seconds, found.tier) == (4.0, "roofline")


@pytest.mark.parametrize(("batch", "nearest"), [(0, 2), (1, 2), (3, 2), (5, 8), (8, 8), (15, 8), (17, 32), (640, 32)])
def test_of_several_batches_the_nearest_by_ratio_counts(batch: int, nearest: int) -> None:
    measured = replace(BOARD, measured=tuple(step(batch=size) for size in (32, 2, 8)))
    found = basis(Work(network="net 3x8x8"), measured, batch)
    assert found is not None
    assert found.batch == nearest


def test_the_whole_timed_step_takes_what_was_measured() -> None:
    work = Work(
        (Operators("conv", "forward", 150.0, 0.0), Operators("memory", "update", 0.0, 25.0)), network="net 3x8x8"
    )
    measured = replace(BOARD, measured=(step(roofline_s=seconds(work.operators, BOARD)),))
    assert price(work, measured, batch=8).seconds == pytest.approx(3.0)


def test_tiers_have_the_names_that_records_use() -> None:
    assert get_args(Tier) == ("measured", "roofline", "scalar")


# ---- properties -------------------------------------------------------------------------------------------------

KINDS = st.sampled_from(get_args(Kind))
AMOUNTS = st.floats(0, 1e15)
GROUPS = st.builds(Operators, KINDS, st.sampled_from(PHASES), AMOUNTS, AMOUNTS, st.integers(1, 1000))
PROFILES = st.sampled_from([library.device(name) for name in library.devices()])


@given(PROFILES, GROUPS, st.floats(1, 100), st.floats(1, 100))
def test_more_of_the_same_is_never_cheaper(profile: DeviceProfile, group: Any, flops: float, moved: float) -> None:
    more = group._replace(flops=group.flops * flops, bytes=group.bytes * moved)
    assert seconds([more], profile) >= seconds([group], profile) >= 0


@given(PROFILES, st.lists(GROUPS, max_size=8), st.integers(0, 8))
def test_two_parts_cost_what_the_whole_costs(profile: DeviceProfile, groups: list[Any], cut: int) -> None:
    whole, parts = seconds(groups, profile), [seconds(groups[:cut], profile), seconds(groups[cut:], profile)]
    assert sum(parts) == pytest.approx(whole, rel=1e-9)


@given(PROFILES, st.lists(GROUPS, min_size=1, max_size=8))
def test_phases_always_are_the_whole(profile: DeviceProfile, groups: list[Any]) -> None:
    found = price(Work(tuple(groups)), profile)
    assert sum(found.phases.values()) == pytest.approx(found.seconds)
    assert found.seconds == pytest.approx(seconds(groups, profile))


@given(PROFILES, GROUPS, st.integers(1, 50))
def test_equal_operators_cost_the_same_together_and_apart(profile: DeviceProfile, group: Any, count: int) -> None:
    single = group._replace(count=1)
    together = seconds([single._replace(count=count)], profile)
    assert together == pytest.approx(seconds([single] * count, profile), rel=1e-9)
