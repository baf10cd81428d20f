"""Price a network's training step on a device: seconds, FLOPs, peak memory, and how firm the price is.

With --cut P the step is also priced in two parts, the first P blocks as a device of a split method runs them
(forward, backward from the gradient, update) and the others as its server does. `tier` says what the price rests on:
measured (this network's step was timed on this device), roofline (rates per kind of operator), scalar (one rate).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import pandas as pd

from harness.cli import showing
from harness.errors import ConfigError, DeviceOutOfMemory
from harness.task import models
from harness.task.config import OptimizerConfig
from harness.task.network import Network, Step
from profiles import library
from profiles.device import DeviceProfile
from profiles.price import basis, price

HELP = "price a network's training step on a device"

_CLASSES = {"image": 1000, "signal": 6, "tokens": 2}
_INPUT = {"image": "224", "signal": "9x128", "tokens": "128"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's name (ammeter list models) or your own, ./mine.py:build")
    parser.add_argument("--on", required=True, metavar="PROFILE", help="a device profile, e.g. rpi-5-8g")
    parser.add_argument("--batch", type=int, required=True, help="samples per mini-batch")
    parser.add_argument("--cut", type=int, metavar="P", help="price the first P blocks and the others apart as well")
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        help="of one sample: 32 (an image of 3x32x32), 1x28x28, 9x128 (signal), 128 (tokens)",
    )
    parser.add_argument("--classes", type=int, help="of the last layer (default: 1000 for images)")
    parser.add_argument("--vocabulary", type=int, default=30_522, help="token ids (default: 30522)")
    parser.add_argument("--norm", choices=("batch", "group", "none"), default="batch", help="default: batch")
    parser.add_argument(
        "--optimizer", choices=("sgd", "momentum", "adam", "adamw"), default="momentum", help="default: momentum (SGD)"
    )
    parser.add_argument("--format", choices=("json", "csv"), default=None, help="print it in this format")


def main(args: argparse.Namespace) -> int:
    if args.batch < 1:
        raise ConfigError(f"--batch {args.batch}: a mini-batch has at least one sample")
    for word, number, least in (("classes", args.classes, 1), ("vocabulary", args.vocabulary, 2)):
        if number is not None and number < least:
            raise ConfigError(f"--{word} {number}: must be {least} or more")
    profile = library.device(args.on)
    kind, shape = _sample(args.model, args.input)
    network = Network(
        args.model, kind, shape, args.classes or _CLASSES[kind], args.vocabulary, args.norm, _optimizer(args.optimizer)
    )
    whole = network.step(args.batch)
    parts = {"whole": whole}
    answer: dict[str, Any] = {
        "model": args.model,
        "profile": profile.id,
        "batch": args.batch,
        "input": "x".join(map(str, shape)),
    }
    extra: dict[str, Any] = {}
    if args.cut is None:
        _check_memory(whole, profile, network, args.batch)
    else:
        device, server, activation = network.parts(args.cut, args.batch)
        parts |= {"device": device, "server": server}
        _check_memory(device, profile, network, args.batch, args.cut)
        extra = {"cut": args.cut, "activation_shape": list(activation)}
    priced = {name: _figures(step, profile, args.batch) for name, step in parts.items()}
    if args.format == "json":
        answer |= priced.pop("whole") | extra | priced
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return 0
    table = pd.DataFrame([{"part": name} | answer | figures for name, figures in priced.items()])
    if args.format == "csv":
        showing.show(table, "csv")
        return 0
    _print(table, answer, extra)
    return 0


def _print(table: pd.DataFrame, answer: dict[str, Any], extra: dict[str, Any]) -> None:
    title = f"{answer['model']} {answer['input']}, batch {answer['batch']}, on {answer['profile']}"
    shown = pd.DataFrame(
        {
            "part": table["part"],
            "step": [f"{value:.4g} s" for value in table["step_s"]],
            "forward": [f"{value:.4g} s" for value in table["forward_s"]],
            "backward": [f"{value:.4g} s" for value in table["backward_s"]],
            "update": [f"{value:.4g} s" for value in table["update_s"]],
            "FLOPs": [f"{value / 1e9:,.4g} G" for value in table["flops"]],
            "peak memory": [f"{value / 2**20:,.0f} MiB" for value in table["peak_memory_bytes"]],
            "tier": table["tier"],
            "rests on": table["basis"],
        }
    )
    showing.show(shown, None, title)
    if extra:
        shape = "x".join(map(str, extra["activation_shape"]))
        print(f"cut {extra['cut']}: an activation of {shape} crosses it")


def _figures(step: Step, profile: DeviceProfile, batch: int) -> dict[str, Any]:
    seconds, tier, phases = price(step.work, profile, batch=batch)
    measured = basis(step.work, profile, batch)
    return {
        "step_s": seconds,
        "forward_s": phases.get("forward", 0.0),
        "backward_s": phases.get("backward", 0.0),
        "update_s": phases.get("update", 0.0),
        "flops": step.work.flops,
        "operators": step.work.num_operators,
        "peak_memory_bytes": step.peak_bytes,
        "tier": tier,
        "basis": tier
        if measured is None
        else f"{measured.network} batch {measured.batch}: {measured.step_s:.4g} s measured, "
        f"{measured.roofline_s:.4g} s by roofline",
    }


def _check_memory(step: Step, profile: DeviceProfile, network: Network, batch: int, cut: int | None = None) -> None:
    """Refuse a batch that does not fit the device.

    Raises:
        DeviceOutOfMemory: with the largest batch that does.
    """
    if step.peak_bytes <= profile.memory_bytes:
        return
    low, high = 0, batch  # the peak grows with the batch: bisect
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = network.step(middle) if cut is None else network.parts(cut, middle)[0]
            fits = found.peak_bytes <= profile.memory_bytes
        except ConfigError:  # batch norm of a single value
            fits = False
        low, high = (middle, high) if fits else (low, middle)
    less = "give it a part of the network, --cut P" if cut is None else "take an earlier cut"
    remedy = f"the largest batch that fits is {low}" if low else f"not even a batch of 1 fits; {less}"
    raise DeviceOutOfMemory(
        f"--batch {batch}: a step of {network.model} needs {step.peak_bytes / 2**20:,.0f} MiB, {profile.id} has "
        f"{profile.memory_bytes / 2**20:,.0f}; {remedy}"
    )


def _sample(model: str, given: str | None) -> tuple[str, tuple[int, ...]]:
    """Return the kind and shape of one sample.

    Raises:
        ConfigError: no such model, or no such shape.
    """
    kinds = models.info(model).kinds
    if given is None:
        kind = "image" if "image" in kinds else kinds[0]
        given = _INPUT[kind]
    try:
        shape = tuple(int(side) for side in given.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or len(shape) > 3:
        raise ConfigError(f"--input {given!r} is no shape; write 224, 1x28x28, 9x128 or a number of tokens")
    if len(shape) == 1:
        if "image" in kinds:
            return "image", (3, shape[0], shape[0])
        return "tokens", shape
    return ("image" if len(shape) == 3 else "signal"), shape


def _optimizer(name: str) -> OptimizerConfig:
    if name in ("adam", "adamw"):
        return OptimizerConfig(name=name)  # type: ignore[arg-type]
    return OptimizerConfig(name="sgd", momentum=0.9 if name == "momentum" else 0.0)
