"""testbeds/virtual/kernel.py: the clock, the order of what is due at one time, timers, processes as generators."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from testbeds.virtual import kernel as kernel_module
from testbeds.virtual.kernel import Future, Kernel


def begin(kernel: Kernel, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return kernel.start(coroutine, None, 0, False, 0)


async def until(kernel: Kernel, delay_s: float) -> None:
    future = Future(kernel, 0, "sleep")
    kernel.later(delay_s, lambda: future.set_result(None))
    await future


def test_the_clock_advances_before_what_is_due_runs():
    kernel = Kernel()
    seen: list[tuple[str, float]] = []
    kernel.at(2.0, lambda name: seen.append((name, kernel.now)), "b")
    kernel.at(1.0, lambda name: seen.append((name, kernel.now)), "a")
    assert kernel.now == 0.0
    kernel.run()
    assert seen == [("a", 1.0), ("b", 2.0)]


def test_what_is_due_at_one_time_runs_in_the_order_it_was_scheduled():
    kernel = Kernel()
    seen: list[int] = []
    for number in (3, 1, 4, 1, 5, 9, 2, 6):
        kernel.at(1.0, seen.append, number)
    kernel.run()
    assert seen == [3, 1, 4, 1, 5, 9, 2, 6]


def test_what_is_scheduled_for_now_runs_now_and_after_what_was_there():
    kernel = Kernel()
    seen: list[tuple[str, float]] = []

    def first(_: Any) -> None:
        seen.append(("first", kernel.now))
        kernel.at(kernel.now, lambda _: seen.append(("third", kernel.now)))

    kernel.at(1.0, first)
    kernel.at(1.0, lambda _: seen.append(("second", kernel.now)))
    kernel.at(1.5, lambda _: seen.append(("fourth", kernel.now)))
    kernel.run()
    assert seen == [("first", 1.0), ("second", 1.0), ("third", 1.0), ("fourth", 1.5)]


def test_activities_run_before_the_clock_moves_on_in_the_order_they_became_ready():
    kernel = Kernel()
    seen: list[tuple[str, float]] = []

    async def activity(name: str, delay_s: float) -> None:
        seen.append((name, kernel.now))
        await until(kernel, delay_s)
        seen.append((name, kernel.now))

    for name, delay_s in (("a", 2.0), ("b", 1.0), ("c", 2.0)):
        begin(kernel, activity(name, delay_s))
    kernel.run()
    assert seen == [("a", 0.0), ("b", 0.0), ("c", 0.0), ("b", 1.0), ("a", 2.0), ("c", 2.0)]


def test_an_activity_is_a_future_of_what_it_returns():
    kernel = Kernel()
    got = []

    async def inner() -> str:
        await until(kernel, 3.0)
        return "value"

    async def outer() -> None:
        activity = begin(kernel, inner())
        assert not activity.done()
        got.append((await activity, kernel.now))
        got.append((await activity, kernel.now))  # again, at once

    begin(kernel, outer())
    kernel.run()
    assert got == [("value", 3.0), ("value", 3.0)]


def test_a_generator_that_yields_times_is_a_process():
    """`at(t, generator.send)`: what it yields is when it runs again; its end ends it."""
    kernel = Kernel()
    seen: list[tuple[str, float]] = []

    def process(name: str, period_s: float) -> Generator[float, None, None]:
        for _ in range(3):
            seen.append((name, kernel.now))
            yield kernel.now + period_s

    kernel.at(0.0, process("a", 2.0).send)
    kernel.at(1.0, process("b", 0.5).send)
    kernel.run()
    assert seen == [("a", 0.0), ("b", 1.0), ("b", 1.5), ("a", 2.0), ("b", 2.0), ("a", 4.0)]
    assert kernel.now == 6.0  # a's third period ends in nothing


def test_a_callback_that_returns_a_time_is_called_again_then():
    kernel = Kernel()
    seen: list[float] = []

    def tick(_: Any) -> float | None:
        seen.append(kernel.now)
        return kernel.now + 1.0 if kernel.now < 3.0 else None

    kernel.at(1.0, tick)
    kernel.run()
    assert seen == [1.0, 2.0, 3.0]


def test_a_callback_called_again_takes_its_place_behind_what_is_due_then():
    kernel = Kernel()
    seen: list[str] = []

    def tick(_: Any) -> float | None:
        seen.append("tick")
        return 2.0 if kernel.now < 2.0 else None

    kernel.at(1.0, tick)
    kernel.at(2.0, lambda _: seen.append("was there before"))
    kernel.run()
    assert seen == ["tick", "was there before", "tick"]


def test_a_cancelled_timer_does_not_strike():
    kernel = Kernel()
    seen: list[str] = []
    timer = kernel.later(1.0, lambda: seen.append("cancelled"))
    kernel.later(2.0, lambda: seen.append("kept"))
    timer.cancel()
    timer.cancel()
    kernel.run()
    assert seen == ["kept"]


def test_a_timer_that_has_struck_may_be_cancelled():
    kernel = Kernel()
    seen: list[float] = []
    timer = kernel.later(1.0, lambda: seen.append(kernel.now))
    kernel.later(2.0, timer.cancel)
    kernel.run()
    assert seen == [1.0]


def test_stop_returns_before_anything_else_happens():
    kernel = Kernel()
    seen: list[str] = []
    wake: list[Future] = [Future(kernel, 0, "x")]

    async def other() -> None:
        await wake[0]
        seen.append("an activity that was ready")

    def stop(_: Any) -> None:
        wake[0].set_result(None)
        kernel.stop()

    begin(kernel, other())
    kernel.at(1.0, stop)
    kernel.at(1.0, seen.append, "due at the same time")
    kernel.run()
    assert (seen, kernel.now, kernel.stopped) == ([], 1.0, True)


def test_cancel_ends_an_activity_where_it_stands():
    kernel = Kernel()
    seen: list[str] = []

    async def activity() -> None:
        try:
            await until(kernel, 5.0)
            seen.append("woke")
        finally:
            seen.append(f"cleaned at {kernel.now}")

    running = begin(kernel, activity())
    kernel.later(2.0, running.cancel)
    kernel.run()
    assert seen == ["cleaned at 2.0"]
    assert running.done()


def test_who_waits_for_a_cancelled_activity_goes_on():
    kernel = Kernel()
    seen: list[float] = []

    async def forever() -> None:
        await Future(kernel, 0, "never")

    async def waiter(activity: Any) -> None:
        await activity
        seen.append(kernel.now)

    running = begin(kernel, forever())
    begin(kernel, waiter(running))
    kernel.later(2.0, running.cancel)
    kernel.run()
    assert seen == [2.0]


def test_an_error_in_an_activity_is_reported_once_and_comes_out_of_its_await():
    kernel = Kernel()
    failures: list[str] = []
    kernel.failed = lambda _, error: failures.append(str(error))
    seen: list[str] = []

    async def fails() -> None:
        await until(kernel, 1.0)
        raise ValueError("broken")

    async def waiter(activity: Any) -> None:
        try:
            await activity
        except ValueError as error:
            seen.append(f"{error} at {kernel.now}")

    begin(kernel, waiter(begin(kernel, fails())))
    kernel.run()
    assert (failures, seen) == (["broken"], ["broken at 1.0"])


def test_waits_that_took_time_are_reported_and_others_are_not():
    kernel = Kernel()
    waits: list[tuple[str, float, float]] = []
    kernel.waited = lambda activity, future: waits.append((future.tag, activity.since, kernel.now))

    async def activity() -> None:
        ready = Future(kernel, 0, "ready")
        ready.set_result(None)
        await ready
        await until(kernel, 0.0)
        await until(kernel, 2.0)

    begin(kernel, activity())
    kernel.run()
    assert waits == [("sleep", 0.0, 2.0)]


def test_a_callback_of_a_finished_future_is_called_at_once():
    kernel = Kernel()
    seen: list[Any] = []
    future = Future(kernel, 0, "x")
    future.add_done_callback(lambda done: seen.append(("early", done.value)))
    future.set_result(1)
    future.add_done_callback(lambda done: seen.append(("late", done.value)))
    assert seen == [("early", 1), ("late", 1)]


@pytest.mark.parametrize("cancelled", [0, 1500])
def test_housekeeping_is_called_now_and_then_and_changes_nothing(cancelled: int, monkeypatch: pytest.MonkeyPatch):
    """Timers that were cancelled in great number are dropped; the live ones still strike, in order."""
    monkeypatch.setattr(kernel_module, "REST_EVENTS", 1000)
    kernel = Kernel()
    calls: list[float] = []
    struck: list[float] = []
    kernel.every(lambda: calls.append(kernel.now))
    for number in range(cancelled):
        kernel.later(1e6 + number, lambda: struck.append(-1.0)).cancel()
    for number in range(3):
        kernel.later(1e3 * (3 - number), lambda: struck.append(kernel.now))

    def tick(_: Any) -> float | None:
        return kernel.now + 1.0 if kernel.now < 2500 else None

    kernel.at(0.0, tick)
    kernel.run()
    assert len(calls) == 2
    assert struck == [1e3, 2e3, 3e3]
    assert kernel.now == 3e3  # the dropped ones do not keep the clock running


def test_the_same_program_does_the_same_thing():
    def trace() -> list[tuple[int, float]]:
        kernel = Kernel()
        seen: list[tuple[int, float]] = []

        async def activity(number: int) -> None:
            for step in range(5):
                await until(kernel, ((number * 7 + step * 3) % 4) * 0.5)
                seen.append((number, kernel.now))

        for number in range(20):
            begin(kernel, activity(number))
        kernel.run()
        return seen

    first = trace()
    assert first == trace()
    assert [time for _, time in first] == sorted(time for _, time in first)
