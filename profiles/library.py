"""Look a profile up by its id, or by the path of your own file.

The id of a device is `board` or `board/mode`. A path ends in .yaml, with `/mode` after it where the
file has power modes. Only the file asked for is parsed, and parsed once while it does not change.
"""

from __future__ import annotations

import difflib
import re
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ProfileError, suggestion
from profiles.device import BoardFile, DeviceProfile
from profiles.figure import Figure, FigureRow, unit
from profiles.network import NetworkFile, NetworkProfile
from profiles.reading import check, read_mapping

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.resources.abc import Traversable

_USER_FILE = re.compile(r"(?P<path>.+\.ya?ml)(?:/(?P<mode>[^/]*))?")


def devices() -> list[str]:
    """Return the ids of the shipped device profiles: boards by name, modes in their file's order."""
    return [profile_id for name in sorted(_index("devices")) for profile_id in _shipped_board(name).profile_ids()]


def networks() -> list[str]:
    """Return the ids of the shipped network profiles, by name."""
    return sorted(_index("networks"))


def device(profile_id: str) -> DeviceProfile:
    """Return a device profile.

    Args:
        profile_id: `board`, `board/mode`, or the path of a file: `my.yaml`, `my.yaml/mode`.

    Raises:
        ProfileError: no such profile, mode or file, or the file is not valid.
    """
    board, mode = _board(profile_id)
    return board.profile(mode)


def network(profile_id: str) -> NetworkProfile:
    """Return a network profile.

    Args:
        profile_id: one of `networks()`, or the path of a .yaml file.

    Raises:
        ProfileError: no such profile or file, or the file is not valid.
    """
    return _network_file(profile_id).profile()


def describe(profile_id: str) -> list[FigureRow]:
    """Return the figures of a device or network profile as rows, in the profile's order, then its measured steps.

    Raises:
        ProfileError: no such profile, mode or file, or the file is not valid.
    """
    user = _USER_FILE.fullmatch(profile_id)
    is_network = "technology" in _user_mapping(user["path"]) if user else profile_id in _index("networks")
    if is_network:
        figures = dict(_network_file(profile_id).figures.given())
    else:
        board, mode = _board(profile_id, among=networks(), kind="device or network")
        figures = board.mode_figures(mode)
        for step in board.measured_steps(mode):
            figures[f"step of {step.network}, batch {step.batch}"] = step.step_s
    return [_row(key, figure) for key, figure in figures.items()]


def _row(key: str, figure: Figure) -> FigureRow:
    symbol = "s" if key.startswith("step of ") else unit(key)
    return FigureRow(key, figure.value, symbol, figure.status, figure.source)


def _board(profile_id: str, among: Iterable[str] = (), kind: str = "device") -> tuple[BoardFile, str | None]:
    """Return the board that an id names, and the mode, None for a board with one mode only."""
    if user := _USER_FILE.fullmatch(profile_id):
        name, mode = user["path"], user["mode"]
        board = check(_user_mapping(name), BoardFile, name)
    else:
        name, slash, rest = profile_id.partition("/")
        mode = rest if slash else None
        if name not in _index("devices") and name not in _aliases():
            targets = _device_names() | {other: other for other in among}
            raise ProfileError(f"{profile_id!r} is no {kind} profile{_nearest(profile_id, targets)}")
        board = _shipped_board(name if name in _index("devices") else _aliases()[name])
    if mode is None and board.modes:
        ids = " or ".join(repr(f"{name}/{known}") for known in board.modes)
        raise ProfileError(f"{profile_id!r} has power modes; name one: {ids}")
    if mode is not None and not board.modes:
        raise ProfileError(f"{name!r} has one power mode only, and {mode!r} was asked for; write {name!r}")
    if mode is not None and mode not in board.modes:
        modes = ", ".join(repr(known) for known in board.modes)
        raise ProfileError(f"{name!r} has no power mode {mode!r}; it has {modes}")
    return board, mode


def _network_file(profile_id: str) -> NetworkFile:
    if user := _USER_FILE.fullmatch(profile_id):
        if user["mode"] is not None:
            raise ProfileError(f"{profile_id!r}: a network has no power mode; write {user['path']!r}")
        return check(_user_mapping(profile_id), NetworkFile, profile_id)
    if profile_id not in _index("networks"):
        raise ProfileError(f"{profile_id!r} is no network profile{suggestion(profile_id, networks())}")
    return _shipped_network(profile_id)


def _nearest(name: str, targets: dict[str, str]) -> str:
    """Return "; did you mean 'id'?" for the target whose name is nearest, else the ids there are."""
    near = difflib.get_close_matches(name, targets, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {targets[near[0]]!r}?"
    return suggestion(name, set(targets.values()))


def _device_names() -> dict[str, str]:
    """Return every name a device goes by and the id it stands for, a board's name for its first mode."""
    names = {profile_id: profile_id for profile_id in devices()}
    for board in (_shipped_board(name) for name in _index("devices")):
        names |= dict.fromkeys((board.id, *board.aliases), board.profile_ids()[0])
    return names


@cache
def _aliases() -> dict[str, str]:
    """Return the board that each alias stands for; reads every board, so ask it last."""
    return {alias: name for name in _index("devices") for alias in _shipped_board(name).aliases}


@cache
def _index(folder: str) -> dict[str, Traversable]:
    """Return the shipped files of a folder by profile name."""
    entries = (files("profiles") / folder).iterdir()
    return {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.endswith(".yaml")}


@cache
def _shipped_board(name: str) -> BoardFile:
    return check(_shipped_mapping("devices", name), BoardFile, f"profiles/devices/{name}.yaml")


@cache
def _shipped_network(name: str) -> NetworkFile:
    return check(_shipped_mapping("networks", name), NetworkFile, f"profiles/networks/{name}.yaml")


def _shipped_mapping(folder: str, name: str) -> dict[str, Any]:
    return read_mapping(_index(folder)[name].read_text(encoding="utf-8"), f"profiles/{folder}/{name}.yaml")


def _user_mapping(path: str) -> dict[str, Any]:
    """Read a user's own file; again when it has changed since."""
    file = Path(path).expanduser().absolute()
    try:
        stat = file.stat()
        return _user_mapping_at(file, path, stat.st_mtime_ns, stat.st_size)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ProfileError(f"{path}: cannot be read as a profile: {reason}; check the path") from None


@lru_cache(maxsize=256)
def _user_mapping_at(file: Path, place: str, mtime_ns: int, size_bytes: int) -> dict[str, Any]:  # noqa: ARG001
    return read_mapping(file.read_text(encoding="utf-8"), place)
