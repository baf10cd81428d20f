"""ammeter price: the figures it gives programs and people, and what it says to what makes no sense."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from harness.cli import main as command
from profiles import library

Ammeter = Callable[..., tuple[int, str, str]]
SMALL = ("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "64")


@pytest.fixture
def ammeter(capsys: pytest.CaptureFixture[str]) -> Ammeter:
    """Run `ammeter price ...`; return exit code, stdout, stderr."""

    def go(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main(["price", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return go


@pytest.fixture
def priced(ammeter: Ammeter) -> Callable[..., dict[str, Any]]:
    """Return the answer of `ammeter price ... --format json`."""

    def go(*arguments: str) -> dict[str, Any]:
        code, out, err = ammeter(*arguments, "--format", "json")
        assert (code, err) == (0, "")
        answer: dict[str, Any] = json.loads(out)
        return answer

    return go


def test_a_program_gets_seconds_flops_memory_and_the_tier(priced: Callable[..., dict[str, Any]]) -> None:
    answer = priced(*SMALL)
    assert (answer["model"], answer["profile"], answer["batch"], answer["input"]) == (
        "resnet-18",
        "rpi-5-8g",
        4,
        "3x64x64",
    )
    assert answer["tier"] == "roofline"
    assert answer["step_s"] == pytest.approx(answer["forward_s"] + answer["backward_s"] + answer["update_s"])
    assert min(answer["forward_s"], answer["backward_s"], answer["update_s"]) > 0
    assert answer["flops"] > 1e9
    assert 2**20 < answer["peak_memory_bytes"] < 2**33


@pytest.mark.slow
def test_a_step_that_was_timed_takes_what_was_measured(priced: Callable[..., dict[str, Any]]) -> None:
    """Its roofline was found for the same step, so the price is the measurement but for rounding."""
    answer = priced("resnet-18", "--on", "rpi-5-8g", "--batch", "16")
    measured = {step.network: step.step_s for step in library.device("rpi-5-8g").measured}
    assert answer["tier"] == "measured"
    assert answer["step_s"] == pytest.approx(measured["resnet-18 3x224x224"], rel=0.01)
    assert "batch 16" in answer["basis"]


def test_a_scalar_profile_says_so(priced: Callable[..., dict[str, Any]]) -> None:
    answer = priced("resnet-18", "--on", "desktop-ryzen-5600x", "--batch", "4", "--input", "64")
    assert answer["tier"] == "scalar"
    assert answer["step_s"] == pytest.approx(answer["flops"] / library.device("desktop-ryzen-5600x").flops_per_s)


def test_a_cut_prices_both_sides(priced: Callable[..., dict[str, Any]]) -> None:
    answer = priced(*SMALL, "--cut", "2")
    assert answer["cut"] == 2
    assert answer["activation_shape"][0] == 4
    assert answer["device"]["flops"] + answer["server"]["flops"] == pytest.approx(answer["flops"])
    for part in ("device", "server"):
        assert {"step_s", "flops", "peak_memory_bytes", "tier"} <= set(answer[part])
        assert 0 < answer[part]["step_s"] < answer["step_s"]


def test_a_bigger_batch_costs_more(priced: Callable[..., dict[str, Any]]) -> None:
    small, large = priced(*SMALL), priced("resnet-18", "--on", "rpi-5-8g", "--batch", "8", "--input", "64")
    for figure in ("step_s", "flops", "peak_memory_bytes"):
        assert small[figure] < large[figure]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("cnn-1d", "--on", "rpi-4-4g", "--batch", "4"), "9x128"),
        (("text-transformer-6", "--on", "rpi-4-4g", "--batch", "2"), "128"),
        (("vgg-5", "--on", "rpi-4-4g", "--batch", "4", "--input", "1x28x28", "--classes", "10"), "1x28x28"),
        (("vgg-5", "--on", "jetson-nano-4g/10w", "--batch", "4", "--input", "32", "--optimizer", "adam"), "3x32x32"),
    ],
)
def test_signals_tokens_and_small_images_are_priced(
    priced: Callable[..., dict[str, Any]], words: tuple[str, ...], kind: str
) -> None:
    answer = priced(*words)
    assert answer["input"] == kind
    assert answer["step_s"] > 0


def test_people_get_a_table(ammeter: Ammeter) -> None:
    code, out, _ = ammeter(*SMALL, "--cut", "2")
    assert code == 0
    assert "resnet-18 3x64x64, batch 4, on rpi-5-8g" in out
    assert [
        line.split()[0] for line in out.splitlines() if line.split()[:1] in (["whole"], ["device"], ["server"])
    ] == [
        "whole",
        "device",
        "server",
    ]
    assert "cut 2: an activation of 4x" in out


def test_csv_has_a_row_per_part(ammeter: Ammeter) -> None:
    code, out, _ = ammeter(*SMALL, "--cut", "2", "--format", "csv")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["part"].tolist() == ["whole", "device", "server"]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_names_the_largest_that_does(ammeter: Ammeter) -> None:
    words = ("resnet-18", "--on", "rpi-zero-2w", "--input", "112")
    code, _, err = ammeter(*words, "--batch", "4096")
    assert code == 2
    assert "Traceback" not in err
    found = err.strip().rpartition("the largest batch that fits is ")[2]
    assert found.isdigit()
    assert ammeter(*words, "--batch", found)[0] == 0
    assert ammeter(*words, "--batch", str(int(found) + 1))[0] == 2


@pytest.mark.slow
def test_a_network_that_fits_no_batch_is_told_so(ammeter: Ammeter) -> None:
    code, _, err = ammeter("vit-base", "--on", "rpi-zero-2w", "--batch", "1")
    assert code == 2
    assert "not even a batch of 1 fits; give it a part of the network, --cut P" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resnet-18", "--on", "rpi-6", "--batch", "4"), "'rpi-6' is no device profile; did you mean"),
        (("resnet-18", "--on", "jetson-nano-4g", "--batch", "4"), "has power modes; name one: 'jetson-nano-4g/10w'"),
        (("resnet-18", "--on", "jetson-nano-4g/20w", "--batch", "4"), "has no power mode '20w'; it has '10w', '5w'"),
        (("resnet-18", "--on", "rpi-5-8g/10w", "--batch", "4"), "has one power mode only"),
        (("resnet-18", "--on", "wifi-ac-pi4", "--batch", "4"), "'wifi-ac-pi4' is no device profile"),
        (("resnet-19", "--on", "rpi-5-8g", "--batch", "4"), "resnet-19"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "0"), "--batch 0: a mini-batch has at least one sample"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "-3"), "--batch -3: a mini-batch has at least one sample"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "big"), "--input 'big' is no shape"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "0"), "--input '0' is no shape"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "3x-8x8"), "--input '3x-8x8' is no shape"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "1x2x3x4"), "--input '1x2x3x4' is no shape"),
        (("resnet-18", "--on", "rpi-5-8g", "--batch", "4", "--input", "9x128"), "resnet-18"),
        (("vgg-11", "--on", "rpi-5-8g", "--batch", "4", "--input", "16"), "32"),
        ((*SMALL, "--cut", "0"), "split point 0 is outside 1.."),
        ((*SMALL, "--cut", "99"), "split point 99 is outside 1.."),
        ((*SMALL, "--classes", "0"), "--classes 0"),
        ((*SMALL, "--classes", "-2"), "--classes -2"),
        (("text-transformer-6", "--on", "rpi-5-8g", "--batch", "2", "--vocabulary", "0"), "--vocabulary 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(ammeter: Ammeter, words: tuple[str, ...], said: str) -> None:
    code, out, err = ammeter(*words)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
