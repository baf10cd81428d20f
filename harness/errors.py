"""Every error Ammeter raises on purpose, so that a caller can see at once whose move it is.

    AmmeterError                    root; the command line prints it without a traceback and exits 2
      ConfigError                   the user's experiment, override or command line
      DataError                     a data set's files: missing, truncated, not what they claim
      ProfileError                  a device or network profile
      ProtocolError                 the method's author broke a rule of the Node
        QuorumError                 a gather can no longer get as many messages as it needs
        EndOfStream                 the sender closed the stream that recv() was reading
      PeerLost                      a node is gone (a method may catch it)
      DeviceOutOfMemory             the work does not fit the device's RAM, as on the board
      DeadlockError                 nobody can move and roles are unfinished
      TestbedError                  the place to run cannot do what was asked
      TransportError                a frame, a peer or a certificate was refused, or a connection lost
      StoreError                    a results folder cannot be read or written
      BrokenRecords                 the records of a run do not add up

A message says what was wrong, where, the value, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AmmeterError(Exception):
    """Root of every error raised on purpose."""


class ConfigError(AmmeterError):
    """The experiment file, an override or the command line is wrong."""


class DataError(AmmeterError):
    """A data set's files are missing, truncated or not what they claim to be."""


class ProfileError(AmmeterError):
    """A device or network profile is unknown or not valid."""


class ProtocolError(AmmeterError):
    """A method broke one of the rules that make "written once" true."""


class QuorumError(ProtocolError):
    """A gather's deadline passed, or its peers are gone, before `at_least` messages had arrived."""


class EndOfStream(ProtocolError):  # noqa: N818 - named after EOFError's cousins; a method may catch it
    """`recv` met the end of a stream; use `async for ... in node.stream(tag)` to end quietly."""


class PeerLost(AmmeterError):  # noqa: N818 - the design's word; a method catches it as an event
    """A peer is gone; its messages will not come."""


class DeviceOutOfMemory(AmmeterError):  # noqa: N818 - the design's word
    """The traced peak of a computation exceeds the device's RAM."""


class DeadlockError(AmmeterError):
    """No node can move and roles are unfinished; the message says who waits for what."""


class TestbedError(AmmeterError):
    """The testbed cannot do what the experiment asks."""

    __test__ = False  # not a test class, whatever its name


class TransportError(AmmeterError):
    """A frame, a peer or a certificate was refused, or a connection is lost."""


class StoreError(AmmeterError):
    """A results folder cannot be read or written."""


class BrokenRecords(AmmeterError):  # noqa: N818
    """The records of a run violate an invariant; its numbers must not be used."""


def suggestion(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the option nearest to `name`, else "; known: a, b, c"."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"; known: {shown}" if shown else ""
