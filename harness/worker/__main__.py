"""`python -m harness.worker`: one node's process; see harness.worker.session."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.errors import AmmeterError
from harness.management.connection import ConnectionGone, dial
from harness.worker.session import CONTROLLER, LEFT_ALONE, Place, Session
from harness.worker.standing import PRELOAD, stand

JOIN_S = 60.0
_PR_SET_NAME = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Join the controller and do what it says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.worker", description=__doc__)
    parser.add_argument("--name", required=True, help="the node's name, as in its certificate")
    parser.add_argument(
        "--controller", required=True, type=_address, metavar="HOST:PORT", help="where the controller listens"
    )
    parser.add_argument("--keys", required=True, type=Path, help="folder with NAME.pem, NAME.key and authority.pem")
    parser.add_argument("--listen", default="127.0.0.1", help="this node's address on the data network")
    parser.add_argument("--incarnation", type=int, default=0, help="how often the node has been restarted")
    parser.add_argument("--standing", action="store_true", help="fork a worker for one run after another")
    parser.add_argument("--remedy", metavar="TEXT", default=Place.remedy, help="what mends a worker of another version")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="with --standing: first import it",
    )
    args = parser.parse_args(arguments)
    _call_process(args.name)
    place = Place(args.name, args.keys, args.listen, None if args.standing else args.incarnation, args.remedy)
    host, port = args.controller
    if args.standing:
        stand(lambda: _live(place, host, port, patient=True), [*PRELOAD, *args.imports])
    return _live(place, host, port)


def _live(place: Place, host: str, port: int, patient: bool = False) -> int:
    """Be one worker; return the exit status.

    Args:
        patient: if there is no controller, wait on.
    """
    while True:
        began_s = time.monotonic()
        try:
            asyncio.run(live(place, host, port))
            return 0
        except AmmeterError as error:
            if patient and time.monotonic() - began_s >= JOIN_S:
                continue
            print(f"{place.name}: {error}", file=sys.stderr)
            return 2


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, e.g. 10.0.0.1:4000")
    return host, int(port)


def _call_process(name: str) -> None:
    """Let tools that list processes show the node's name."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


async def live(place: Place, host: str, port: int) -> None:
    """Be one worker from its joining to its end.

    One whose controller is gone, or in which something of the run does not end, leaves the process at once.

    Raises:
        TransportError: there is no controller.
    """
    connection = await dial(place.name, CONTROLLER, host, port, place.keys, JOIN_S)
    session = Session(place, connection)
    try:
        await session.live()
    except ConnectionGone as error:
        print(f"{place.name}: {error}", file=sys.stderr, flush=True)
        os._exit(LEFT_ALONE)  # whatever is still being computed
    connection.close()
    await connection.wait_closed()
    if session.left_behind:  # leaving in good order would wait for it
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
