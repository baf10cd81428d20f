"""Clock locks that are held for a run and let go whatever ends it.

A lock is the driver's: it outlives the process that set it. So whoever holds one lets go in `release`, at the
interpreter's exit, on SIGTERM and SIGHUP, and notes in a file what it is about to lock, before it does: after a
kill -9, `release_leftover` finds it there.

NVML reads no lock, so one that somebody had set before cannot be set again: it is gone. The clocks of nvidia-smi -ac
can be read; they are put back should letting go have changed them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pynvml import NVMLError, NVMLError_NotFound

from harness.errors import TestbedError
from testbeds.docker import gpu_nvml
from testbeds.docker.gpu_nvml import Clock

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGINT becomes an exception, and so ends in `release`
_RESET = {"graphics": "-rgc", "memory": "-rmc"}


class Lock(BaseModel):
    """A clock that is locked, or about to be.

    Attributes:
        before: the GPU's application clocks before, memory and graphics, MHz; None = it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str = Field(min_length=1)
    clock: Clock
    mhz: int
    before: tuple[int, int] | None


class _State(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid")

    locked: list[Lock]


class Locks:
    """The locks of one run; it is used from one thread, the main one if signals are to be minded."""

    def __init__(self, nvml: Any, file: Path | None = None) -> None:
        self._nvml = nvml
        self._file = file
        self._held: dict[tuple[str, Clock], Lock] = {}
        self._armed = False
        self._owner = 0
        self._previous: dict[int, Any] = {}
        self._busy = False
        self._pending: int | None = None

    def lock(self, uuid: str, clock: Clock, mhz: int) -> None:
        """Lock a clock of a GPU; one that is held stays as it is.

        Raises:
            NVMLError: NVML refused, and it is not held; or it failed, and it is held, for it may have been done.
            TestbedError: no driver.
            OSError: the file cannot be written; then nothing is locked.
        """
        if (uuid, clock) in self._held:
            return
        before = gpu_nvml.application_clocks(self._nvml, uuid)
        self._begin()
        try:
            self._held[uuid, clock] = Lock(uuid=uuid, clock=clock, mhz=mhz, before=before)
            try:
                self._save()
                self._arm()
            except BaseException:
                del self._held[uuid, clock]  # not locked yet, so nothing to let go of: it may be another's
                raise
            try:
                gpu_nvml.lock(self._nvml, uuid, clock, mhz)
            except gpu_nvml.REFUSALS:  # anything else may have come after the deed, and is let go of
                self._drop((uuid, clock))
                raise
        finally:
            self._end()

    def release(self) -> None:
        """Let go of all; a second time does nothing.

        Raises:
            TestbedError: NVML would not; what is still locked stays in the file, and another call tries again.
        """
        self._begin()
        try:
            failures = []
            for key, held in reversed(list(self._held.items())):
                try:
                    _let_go(self._nvml, held)
                except (NVMLError, TestbedError) as error:
                    failures.append(_sentence(held, error))
                else:
                    with contextlib.suppress(
                        OSError
                    ):  # the folder may be gone already; the other clocks are not free yet
                        self._drop(key)
            self._disarm()
        finally:
            self._end()
        if failures:
            raise TestbedError("\n".join(failures))

    def release_or_say(self) -> None:
        """As `release`, where an error has nowhere to go: it is told on the standard error."""
        try:
            self.release()
        except TestbedError as error:
            print(error, file=sys.stderr, flush=True)

    # ---- the file -------------------------------------------------------------------------------------------

    def _drop(self, key: tuple[str, Clock]) -> None:
        self._held.pop(key, None)
        self._save()

    def _save(self) -> None:
        """Make the file say what is held; no file = nothing."""
        if self._file is None:
            return
        if not self._held:
            self._file.unlink(missing_ok=True)
            return
        part = self._file.with_name(f"{self._file.name}.part")
        part.write_text(_State(locked=list(self._held.values())).model_dump_json(), encoding="utf-8")
        os.replace(part, self._file)

    # ---- the ways out ---------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._armed:
            return
        self._armed = True
        self._owner = os.getpid()
        atexit.register(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):  # ignored, or none of Python's
                    self._previous[number] = previous
                    signal.signal(number, self._on_signal)

    def _disarm(self) -> None:
        self._armed = False
        atexit.unregister(self._at_exit)
        for number, previous in list(self._previous.items()):
            # another handler, set since, stays; and only the main thread may set one: else ours stays, and passes on
            if signal.getsignal(number) == self._on_signal and threading.current_thread() is threading.main_thread():
                signal.signal(number, previous)
                del self._previous[number]

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:  # a fork of this process holds nothing
            self.release_or_say()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._pending = number  # `_end` sees to it
            return
        previous = self._previous.get(number, signal.SIG_DFL)
        self._at_exit()
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _begin(self) -> None:
        self._busy = True

    def _end(self) -> None:
        self._busy = False
        if self._pending is not None:
            number, self._pending = self._pending, None
            os.kill(os.getpid(), number)  # to whoever minds it now


def release_leftover(file: Path, nvml: Any) -> list[str]:
    """Let go of what a run that was killed had locked, and remove its file.

    Args:
        file: the run's; if it is not there, nothing was locked.

    Returns:
        What was let go, a line each.

    Raises:
        TestbedError: the file is none of ours, or NVML would not let go; then the file stays.
    """
    try:
        state = _State.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError:
        raise TestbedError(
            f"{file}: not a list of locked clocks; see 'nvidia-smi -q -d CLOCK', let go with 'sudo nvidia-smi -rgc' "
            "and 'sudo nvidia-smi -rmc', and delete the file"
        ) from None
    done, failures = [], []
    for held in reversed(state.locked):
        try:
            _let_go(nvml, held)
        except (NVMLError, TestbedError) as error:
            failures.append(_sentence(held, error))
        else:
            done.append(f"gpu {held.uuid}: {held.clock} clock, locked at {held.mhz} MHz, let go")
    if failures:
        failures.append(f"{file}: delete it if the machine has been rebooted since: no lock outlives the driver")
        raise TestbedError("\n".join(failures))
    file.unlink(missing_ok=True)
    return done


def _let_go(nvml: Any, held: Lock) -> None:
    with contextlib.suppress(NVMLError_NotFound):  # a GPU that is not there any more has no lock either
        gpu_nvml.unlock(nvml, held.uuid, held.clock)
        if held.before is not None and gpu_nvml.application_clocks(nvml, held.uuid) != held.before:
            gpu_nvml.set_application_clocks(nvml, held.uuid, held.before)


def _sentence(held: Lock, error: Exception) -> str:
    return (
        f"gpu {held.uuid}: its {held.clock} clock is still locked at {held.mhz} MHz ({error}); run "
        f"'sudo nvidia-smi -i {held.uuid} {_RESET[held.clock]}'"
    )
