"""The benchmark: `make bench` measures everything anew and writes docs/benchmarks.md.

Ratios compare things measured in turn in one run (A B A B ...), and the median of the pairs is quoted: the
machine's speed drifts, a ratio of neighbours does not.
"""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path

import torch

from results import environment
from tests.bench import aggregate, clock, learn, prices, real, records, scale, shaping, star, transport

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main() -> None:
    host = environment.describe()
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`; do not edit by hand. Ratios are medians of pairs measured in turn in one run.\n",
        f"Machine: {host['processor']}, {host['cores']} cores, {host['memory_bytes'] / 2**30:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}; {date.today()}.\n",
    ]
    for part in (clock, star, prices, scale, records, learn, aggregate, transport, shaping, real):
        text = part.report()
        print(text)
        parts.append(text)
    DOCUMENT.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
