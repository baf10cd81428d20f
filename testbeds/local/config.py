"""The experiment's `testbed` section for the local testbed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from testbeds._wall.config import WallFleet, check_wall


class Config(WallFleet):
    """Settings of the local testbed.

    Attributes:
        compute: "paced" = a computation takes as long as on the node's board; "native" = as long as it takes here.
        shaped: links have their networks' rates and latencies; else they are as fast as loopback.
    """

    compute: Literal["paced", "native"] = "paced"
    shaped: bool = True


def check(config: Config, where: str, data_root: Path | None = None) -> None:
    """Look every profile up and check what types cannot say.

    Raises:
        ProfileError, ConfigError: by key.
    """
    check_wall(config, where, data_root)
