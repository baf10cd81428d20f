"""The virtual clock: a heap of things that will happen, and the coroutines that wait for them.

The clock advances before what is due runs. What is due at the same time runs in the order in which it was
scheduled (a serial number breaks ties), and activities that became ready run before the clock moves on, in the
order in which they became ready: the same program always does the same thing.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

REST_EVENTS = 100_000
"""After how many events the kernel looks after memory."""


class Future:
    """A value that will be there later."""

    __slots__ = ("callbacks", "cause", "error", "finished", "kernel", "kind", "tag", "value", "waiter")

    def __init__(self, kernel: Kernel, kind: int, tag: str) -> None:
        self.kernel = kernel
        self.kind = kind
        self.tag = tag
        self.finished = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiter: Activity | None = None
        self.callbacks: list[Callable[[Any], None]] | None = None
        self.cause = -1

    def done(self) -> bool:
        return self.finished

    def set_result(self, value: Any, cause: int = -1) -> None:
        self.value = value
        self.cause = cause
        self.finished = True
        activity = self.waiter
        if activity is not None:  # Kernel.wake, written out: this is the hottest line of all
            kernel = self.kernel
            if kernel.now > activity.since:
                kernel.waited(activity, self)
            activity.waiting = None
            kernel.ready.append(activity)
        if self.callbacks is not None:
            self.call_back()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self.finish()

    def finish(self) -> None:
        """The value (or error) is set: wake who waits for it."""
        self.finished = True
        if self.waiter is not None:
            self.kernel.wake(self.waiter)
        if self.callbacks is not None:
            self.call_back()

    def call_back(self) -> None:
        """Call what was to be called when finished."""
        callbacks, self.callbacks = self.callbacks or [], None
        for call in callbacks:
            call(self)

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        if self.finished:
            call(self)
        elif self.callbacks is None:
            self.callbacks = [call]
        else:
            self.callbacks.append(call)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.finished:
            yield self
        if self.error is not None:
            raise self.error
        return self.value


class Activity(Future):
    """A running coroutine; its value is what the coroutine returns.

    Attributes:
        lane: its number on its node.  owner: the host it runs on.  since: when it began to wait.
    """

    __slots__ = ("coroutine", "daemon", "lane", "owner", "randomness", "send", "since", "waiting")

    def __init__(
        self,
        kernel: Kernel,
        coroutine: Coroutine[Any, Any, Any],
        owner: Any,
        lane: int,
        daemon: bool,
        kind: int,
    ) -> None:
        super().__init__(kernel, kind, "activity")
        self.coroutine = coroutine
        self.send = coroutine.send
        self.owner = owner
        self.lane = lane
        self.daemon = daemon
        self.waiting: Future | None = None
        self.since = 0.0
        self.randomness: Any = None  # its torch stream, once it has computed something

    def cancel(self) -> None:
        """End the coroutine at the await where it stands."""
        if self.finished:
            return
        self.finished = True
        if self.waiting is not None:
            if self.waiting.waiter is self:
                self.waiting.waiter = None
            self.kernel.abandoned(self, self.waiting)
            self.waiting = None
        if not getattr(self.coroutine, "cr_running", False):
            self.coroutine.close()
        self.finish()


class Timer:
    """A scheduled call that may be cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None

    def fire(self, _: Any) -> None:
        if self.call is not None:
            self.call()


class Kernel:
    """Steps coroutines in virtual time.

    Attributes:
        now: virtual seconds since the start.
        current: the activity that is running, None between activities.
        waited: called as `waited(activity, future)` when a wait that took time is over.
        abandoned: called as `abandoned(activity, future)` when an activity is cancelled in a wait.
        failed: called as `failed(activity, error)` when a coroutine raises.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.current: Activity | None = None
        self.heap: list[tuple[float, int, Callable[[Any], Any], Any]] = []
        self.serial = 0
        self.ready: deque[Activity] = deque()
        self.stopped = False
        self.waited: Callable[[Activity, Future], None] = _ignore
        self.abandoned: Callable[[Activity, Future], None] = _ignore
        self.failed: Callable[[Activity, BaseException], None] = _raise
        self._housekeeping: Callable[[], None] | None = None

    def at(self, time: float, call: Callable[[Any], Any], argument: Any = None) -> None:
        """Call `call(argument)` at that time. If it returns a time, it is called again then."""
        self.serial += 1
        heappush(self.heap, (time, self.serial, call, argument))

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Like `at`, from now on and to be cancelled."""
        timer = Timer(call)
        self.at(self.now + delay_s, timer.fire)
        return timer

    def start(self, coroutine: Coroutine[Any, Any, Any], owner: Any, lane: int, daemon: bool, kind: int) -> Activity:
        """Start a coroutine; it runs before the clock moves on."""
        activity = Activity(self, coroutine, owner, lane, daemon, kind)
        activity.since = self.now
        self.ready.append(activity)
        return activity

    def wake(self, activity: Activity) -> None:
        """The future an activity waits for is finished."""
        future = activity.waiting
        if future is not None:
            if self.now > activity.since:
                self.waited(activity, future)
            activity.waiting = None
            self.ready.append(activity)

    def stop(self) -> None:
        """Return from `run` before anything else happens."""
        self.stopped = True
        self.ready.clear()

    def every(self, call: Callable[[], None]) -> None:
        """Call that now and then while running (to spill records)."""
        self._housekeeping = call

    def run(self) -> None:
        """Run until nothing is left to happen, or `stop`."""
        ready, heap = self.ready, self.heap
        take = ready.popleft
        collecting = gc.isenabled()
        gc.disable()  # hardly any cycles are made on the way; `_rest` collects them
        events = 0
        try:
            while True:
                while ready:
                    activity = take()
                    if activity.finished:
                        continue
                    self.current = activity
                    try:
                        waiting = activity.send(None)
                    except StopIteration as stop:
                        if not activity.finished:
                            activity.set_result(stop.value, activity.lane)
                    except Exception as error:
                        self._raised(activity, error)
                    else:
                        if waiting.waiter is None and not waiting.finished and not activity.finished:
                            waiting.waiter = activity
                            activity.waiting = waiting
                            activity.since = self.now
                        else:
                            self._wait(activity, waiting)
                if self.stopped or not heap:
                    return
                self.now, _, call, argument = heap[0]
                try:
                    again = call(argument)
                except StopIteration:  # a process in the form of a generator has ended
                    again = None
                # what was just called is still the smallest entry: nothing earlier can have been pushed
                if again is None:
                    heappop(heap)
                else:
                    self.serial += 1
                    heapreplace(heap, (again, self.serial, call, argument))
                events += 1
                if events == REST_EVENTS:
                    events = 0
                    self._rest()
        finally:
            self.current = None
            if collecting:
                gc.enable()

    def _raised(self, activity: Activity, error: Exception) -> None:
        """A coroutine has raised."""
        if not activity.finished:
            activity.finished = True
            self.failed(activity, error)
            activity.set_exception(error)

    def _wait(self, activity: Activity, waiting: Future) -> None:
        """The rarer ends of a step."""
        if activity.finished:  # it cancelled itself
            activity.coroutine.close()
        elif waiting.finished:
            self.ready.append(activity)
        else:  # somebody else waits for the same future
            activity.waiting = waiting
            activity.since = self.now
            waiting.add_done_callback(lambda _: self.wake(activity))

    def _rest(self) -> None:
        """Every REST_EVENTS events: collect garbage, drop cancelled timers, write records."""
        gc.collect(1)
        alive = [entry for entry in self.heap if not _cancelled(entry)]
        if len(alive) < len(self.heap) // 2:
            self.heap[:] = alive
            heapify(self.heap)
        if self._housekeeping is not None:
            self._housekeeping()


def _cancelled(entry: tuple[float, int, Callable[[Any], Any], Any]) -> bool:
    timer = getattr(entry[2], "__self__", None)
    return isinstance(timer, Timer) and timer.call is None


def _ignore(activity: Activity, future: Future) -> None:
    """Nobody records."""


def _raise(activity: Activity, error: BaseException) -> None:  # noqa: ARG001
    raise error
