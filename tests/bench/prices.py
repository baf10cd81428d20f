"""Prices: how far the fitted rates are off for networks that they have not seen."""

from __future__ import annotations

import statistics

from harness.cli.fit import fits
from profiles.fit import predict
from profiles.published.times import read

HELD_OUT = ("resnet-34", "resnet-50", "mobilenet-v3-large", "vit-small")


def report() -> str:
    """Fit and return the section."""
    published = read("raspberry-pi")
    boards = list(published.boards)
    lines = [
        "## Prices",
        "",
        "Relative error of a predicted training step, published times as truth (`ammeter fit raspberry-pi`). Left out:",
        "each network predicted by a fit that has never seen it. Held out: four networks at once, "
        f"{', '.join(HELD_OUT)}, predicted by a fit to the others.",
        "",
        "| board | networks | left out, mean | left out, worst | held out, mean | target |",
        "|---|---|---|---|---|---|",
    ]
    for every, few in zip(fits(published, boards, []), fits(published, boards, list(HELD_OUT)), strict=True):
        left = every.left_out
        worst = max(left, key=lambda key: abs(left[key]))
        unseen = [
            abs(predict(few.figures, few.profile, sample) / sample.seconds - 1)
            for sample in few.unseen
            if sample.what == "step"
        ]
        lines.append(
            f"| {every.profile.id} | {len(left)} | {statistics.mean(map(abs, left.values())):.1%} | {worst[0]} "
            f"{left[worst]:+.0%} | {statistics.mean(unseen):.1%} | 10 %, 8 % |"
        )
    return "\n".join([*lines, ""])
