"""Small files of recorded rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CSV: dict[str, Any] = {"file": "t.csv", "format": "csv", "source": "s"}
"""A trace section of write_rates' table."""


def write_rates(root: Path) -> None:
    """Make a data folder with a table of ten traces (t.csv), and one trace in each other form."""
    rows = [
        f"s,t{i},{'bus' if i % 2 else 'foot'},{1000 * k},1000,{100 * (i + 1) + 50 * k},{10 * (i + 1) + k}\n"
        for i in range(10)
        for k in range(4)
    ]
    root.mkdir()
    (root / "t.csv").write_text("source,trace,mode,t_ms,duration_ms,down_kbps,up_kbps\n" + "".join(rows))
    (root / "m.up").write_text("\n".join(str(7 * i) for i in range(1, 400)))
    (root / "p.txt").write_text("0 1\n1 1\n2 0\n3 4\n")
    (root / "bad.txt").write_text("0 1\n1 -1\n")
