"""profiles/fit.py and harness/cli/fit.py's tracing: known rates are found again; shipped rates are those of the fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.fit import Fitted, fits
from harness.cost.work import Kind, Operators
from harness.errors import ConfigError, ProfileError
from harness.task import models
from harness.task.network import Network
from profiles import library
from profiles.device import DeviceProfile
from profiles.fit import FIGURES, RATES, Fit, Sample, _non_negative, fit, leave_one_out, predict
from profiles.price import seconds
from profiles.published import times

KINDS: tuple[Kind, ...] = tuple(FIGURES)
TRUE: Fit = {
    "conv_flops_per_s": 4e10,
    "matmul_flops_per_s": 1e11,
    "depthwise_flops_per_s": 3e8,
    "depthwise_backward_flops_per_s": 9e8,
    "memory_bytes_per_s": 2e9,
}
HELD_OUT = ["resnet-34", "resnet-50", "mobilenet-v3-large", "vit-small"]


def board(**figures: Any) -> DeviceProfile:
    return DeviceProfile(id="board", title="", processor="cpu", cores=4, memory_bytes=2**30, **{**TRUE, **figures})


def networks(seed: int, count: int = 8) -> list[tuple[Operators, ...]]:
    """Made-up networks with some of every kind, each of its own proportions."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        groups = []
        for kind in KINDS:
            work = rng.exponential() * TRUE[FIGURES[kind]]  # some seconds' worth
            flops, moved = (0.0, work) if kind == "memory" else (work, 1.0)
            groups.append(Operators(kind, "forward", flops / 10, moved / 10, 10))
        found.append(tuple(groups))
    return found


def timed(profile: DeviceProfile, operators: list[tuple[Operators, ...]], what: Any = "step") -> list[Sample]:
    return [Sample(f"net-{i}", found, seconds(found, profile), what, 1) for i, found in enumerate(operators)]


# ---- made-up data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("operator_s", [0.0, 1e-3])
def test_known_rates_are_found_again(seed: int, operator_s: float) -> None:
    profile = board(operator_s=operator_s)
    assert fit(timed(profile, networks(seed)), profile) == pytest.approx(TRUE, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_time_per_operator_is_found_as_well(seed: int) -> None:
    true = board(operator_s=0.02)
    rng = np.random.default_rng(seed)
    varied = [
        tuple(group._replace(count=int(rng.integers(1, 40))) for group in operators) for operators in networks(seed)
    ]
    names = (*RATES, "operator_s")
    found = fit(timed(true, varied, "infer"), replace(true, operator_s=7.0), names)
    assert found == pytest.approx({**TRUE, "operator_s": 0.02}, rel=1e-6)


def test_what_is_not_asked_for_is_taken_from_the_profile() -> None:
    profile = board(operator_s=1e-3)
    found = fit(timed(profile, networks(0)), profile, ("conv_flops_per_s",))
    assert found == pytest.approx({"conv_flops_per_s": TRUE["conv_flops_per_s"]}, rel=1e-9)


def test_products_that_the_memory_holds_up_say_nothing_of_their_rate() -> None:
    """Half of each network's products move so much that the stream rate decides; only the fit that knows is right."""
    true = board(stream_bytes_per_s=1e9)
    rng = np.random.default_rng(3)
    operators = [
        (*found, Operators("matmul", "forward", 1e8 * rng.exponential(), 1e9 * rng.exponential()))
        for found in networks(3)
    ]
    samples = timed(true, operators, "infer")
    assert fit(samples, true, roof=True) == pytest.approx(TRUE, rel=1e-3)
    assert fit(samples, true)["matmul_flops_per_s"] != pytest.approx(TRUE["matmul_flops_per_s"], rel=0.1)


def test_a_kind_that_no_sample_has_is_left_out() -> None:
    profile = board()
    dense = [tuple(g for g in found if "depthwise" not in g.kind) for found in networks(1)]
    assert set(fit(timed(profile, dense), profile)) == {"conv_flops_per_s", "matmul_flops_per_s", "memory_bytes_per_s"}


def test_a_kind_that_costs_nothing_gets_a_rate_that_costs_a_thousandth() -> None:
    profile = board(matmul_flops_per_s=1e30)
    samples = timed(profile, networks(2))
    rate = fit(samples, profile)["matmul_flops_per_s"]
    most = max(g.flops * g.count for sample in samples for g in sample.operators if g.kind == "matmul")
    assert most / rate == pytest.approx(1e-3 * max(sample.seconds for sample in samples))


def test_a_like_board_lends_its_proportions() -> None:
    """Two networks leave five rates open; a board twice as fast in everything closes them."""
    fast, slow = board(), board(**{name: rate / 2 for name, rate in TRUE.items()})
    samples = timed(slow, networks(4, 2))
    lent = fit(samples, slow, like=fit(timed(fast, networks(5)), fast))
    assert lent == pytest.approx({name: rate / 2 for name, rate in TRUE.items()}, rel=1e-6)
    assert fit(samples, slow) != pytest.approx({name: rate / 2 for name, rate in TRUE.items()}, rel=0.05)


def test_a_step_with_frozen_layers_counts_less() -> None:
    """Two times of one network, weights 1 and 0.2 on relative errors.

    By hand: (x - 1) + 0.2^2 (x - 2) / 2^2 = 0 and 0.2^2 (x - 1) + (x - 2) / 2^2 = 0.
    """
    profile = board()
    operators = (Operators("conv", "forward", 4e10, 0.0),)
    both = [Sample("a", operators, 1.0, "step"), Sample("a", operators, 2.0, "frozen")]
    assert 4e10 / fit(both, profile)["conv_flops_per_s"] == pytest.approx(1.02 / 1.01)
    both = [Sample("a", operators, 1.0, "frozen"), Sample("a", operators, 2.0, "step")]
    assert 4e10 / fit(both, profile)["conv_flops_per_s"] == pytest.approx(0.54 / 0.29)


def test_nothing_to_fit_is_said() -> None:
    with pytest.raises(ValueError, match="no published time"):
        fit([], board())
    with pytest.raises(ValueError, match="none of the figures"):
        fit(timed(board(), networks(0)), board(), ())


def test_leaving_out_what_is_exact_finds_no_error() -> None:
    profile = board()
    errors = leave_one_out(timed(profile, networks(6)), profile)
    assert len(errors) == 8
    assert max(map(abs, errors.values())) < 1e-6


def test_a_left_out_network_is_really_left_out() -> None:
    """One network's time is wrong by half: its own prediction does not know, and is off by a third."""
    profile = board()
    samples = timed(profile, networks(7))
    samples[0] = replace(samples[0], seconds=1.5 * samples[0].seconds)
    errors = leave_one_out(samples, profile)
    assert errors["net-0", 1] == pytest.approx(1 / 1.5 - 1, abs=1e-6)


def test_a_network_that_alone_has_a_kind_is_not_predicted() -> None:
    profile = board()
    dense = [tuple(g for g in found if "depthwise" not in g.kind) for found in networks(8)]
    samples = timed(profile, [*dense[:-1], networks(8)[-1]])
    assert set(leave_one_out(samples, profile)) == {(f"net-{i}", 1) for i in range(7)}


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 5))
def test_least_squares_are_not_negative_and_the_best_there_are(seed: int, rows: int, columns: int) -> None:
    """The conditions of Karush, Kuhn and Tucker: no slope where x > 0, and none downwards where x = 0."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((rows, columns)), rng.standard_normal(rows)
    found = _non_negative(left, right)
    slope = left.T @ (left @ found - right)
    assert (found >= 0).all()
    assert (slope >= -1e-7).all()
    assert np.abs(slope[found > 0]).max(initial=0.0) < 1e-7


def test_a_column_of_zeros_takes_no_part() -> None:
    found = _non_negative(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([2.0, 2.0]))
    assert found.tolist() == pytest.approx([2.0, 0.0])


# ---- shipped times and profiles ---------------------------------------------------------------------------------


@cache
def fitted(name: str, *without: str) -> dict[str, Fitted]:
    published = times.read(name)
    return {found.profile.id: found for found in fits(published, list(published.boards), list(without))}


@pytest.mark.slow
@pytest.mark.parametrize("name", times.names())
def test_shipped_figures_are_those_of_the_fit(name: str) -> None:
    for profile_id, found in fitted(name).items():
        profile = library.device(profile_id)
        for figure, value in found.figures.items():
            assert getattr(profile, figure) == pytest.approx(value, rel=0.01), (profile_id, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", times.names())
def test_every_published_training_step_is_in_its_profile(name: str) -> None:
    published = times.read(name)
    shape = "x".join(map(str, published.input))
    for profile_id, found in published.boards.items():
        measured = {(step.network, step.batch): step.step_s for step in library.device(profile_id).measured}
        for network, given_times in found.steps.items():
            if given_times.step_s is not None:
                step_s = measured[f"{network} {shape}", published.batch]
                assert step_s == pytest.approx(given_times.step_s, rel=1e-3)


@cache
def _operators(model: str, shape: tuple[int, ...], batch: int) -> tuple[Operators, ...]:
    return Network(model, models.info(model).kinds[0], shape, 1000).step(batch).work.operators


MEASURED = [name for name in library.devices() if library.device(name).measured]


@pytest.mark.slow
@pytest.mark.parametrize("profile_id", MEASURED)
def test_measured_steps_carry_what_the_profiles_own_rates_make_of_them(profile_id: str) -> None:
    profile = library.device(profile_id)
    for step in profile.measured:
        model, shape = step.network.split()
        operators = _operators(model, tuple(map(int, shape.split("x"))), step.batch)
        assert seconds(operators, profile) == pytest.approx(step.roofline_s, rel=0.01), step.network


def test_some_profiles_are_measured() -> None:
    assert {"rpi-4-8g", "rpi-5-8g", "jetson-nano-4g/10w"} <= set(MEASURED)


@pytest.mark.slow
@pytest.mark.parametrize("profile_id", ["rpi-5-8g", "rpi-4-8g"])
def test_networks_that_the_fit_has_never_seen_are_priced_within_ten_percent(profile_id: str) -> None:
    """Each left out in turn: 10 % on average. Four of them at once, from the others alone: 8 %."""
    errors = fitted("raspberry-pi")[profile_id].left_out.values()
    assert len(errors) >= 7
    assert np.mean(np.abs(list(errors))) <= 0.10
    held_out = fitted("raspberry-pi", *HELD_OUT)[profile_id]
    assert {sample.network for sample in held_out.unseen} <= set(HELD_OUT)
    assert not {sample.network for sample in held_out.samples} & set(HELD_OUT)
    unseen = [predict(held_out.figures, held_out.profile, s) / s.seconds - 1 for s in held_out.unseen]
    assert len(unseen) >= 2
    assert np.mean(np.abs(unseen)) <= 0.08


@pytest.mark.slow
def test_inference_of_the_agx_orin_is_fitted_in_every_mode() -> None:
    for profile_id, found in fitted("eager-inference").items():
        fits_to = [predict(found.figures, found.profile, s) / s.seconds - 1 for s in found.samples]
        assert np.mean(np.abs(fits_to)) <= 0.12, profile_id


# ---- a user's file of times -------------------------------------------------------------------------------------

FILE = """
title: mine
source: timed here
input: [1, 28, 28]
classes: 10
batch: 4
boards:
  rpi-5-8g: {steps: {resnet-18: {step_s: 1.5}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step_s: 1.5", "", "no time is given; give step_s, frozen_s or infer_s"),
        ("batch: 4\n", "", "boards.rpi-5-8g.steps.resnet-18: is a time of a step; give the file its 'batch'"),
        ("{steps", "{like: rpi-6, steps", "boards.rpi-5-8g.like: 'rpi-6' is no other board of this file"),
        ("{steps", "{fit: [cores], steps", "boards.rpi-5-8g.fit.0: input should be"),
        ("1.5", "-1", "step_s: input should be greater than 0"),
        ("step_s: 1.5", "infer_s: {0: 1.5}", "infer_s.0"),
        ("{steps: {resnet-18: {step_s: 1.5}}}", "{steps: {}}", "boards.rpi-5-8g.steps"),
    ],
)
def test_a_wrong_file_of_times_is_refused_with_its_place(tmp_path: Any, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    assert times.read(str(path)).boards["rpi-5-8g"].steps["resnet-18"].step_s == 1.5
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        times.read(str(path))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_an_unknown_source_of_times_is_told_the_nearest() -> None:
    with pytest.raises(ProfileError, match="did you mean 'raspberry-pi'"):
        times.read("raspbery-pi")
    with pytest.raises(ProfileError, match=r"absent\.yaml: cannot be read: No such file"):
        times.read("absent.yaml")


def test_a_fit_without_anything_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="--without leaves nothing to fit jetson-nano-4g/10w to"):
        fits(times.read("jetson-nano"), ["jetson-nano-4g/10w"], ["resnet-18"])
