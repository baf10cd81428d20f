"""A run from the first worker's start to the last one's end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from harness import errors, record
from harness.controller.alignment import align
from harness.controller.collecting import collect
from harness.controller.emulator import Emulator
from harness.controller.losses import Blame
from harness.controller.members import Member
from harness.controller.preflight import Finding, Preflight, refuse
from harness.controller.progress import Progress
from harness.controller.settings import Settings
from harness.errors import AmmeterError, PeerLost, TestbedError, TransportError
from harness.experiment import RunSpec
from harness.management.connection import Connection, ConnectionGone, Desk, listen
from harness.management.note import Note
from harness.record import Recorder
from harness.run import Progress as Report
from harness.testbed import Outcome
from harness.topology import SERVER, Topology
from harness.transport import tls
from harness.worker.job import Job
from harness.worker.session import CONTROLLER

_WATCH_S = 0.2
_LEAD_S = 0.3
_STOP_S = 30.0
_SCORE_S = 3600.0
_SALVAGE_S = 5.0
"""How long workers may take to hand over their rows when the run has failed."""


class Conductor:
    """Conducts one run.

    Args:
        folder: of its own, for keys.
        info: what each node is, for the record.
    """

    def __init__(
        self,
        spec: RunSpec,
        nodes: Topology,
        emulator: Emulator,
        settings: Settings,
        recorder: Recorder,
        folder: Path,
        data_root: Path | None,
        progress: Report | None,
    ) -> None:
        self._spec = spec
        self._nodes = nodes
        self._emulator = emulator
        self._settings = settings
        self._recorder = recorder
        self._keys = folder / "keys"
        self._data_root = data_root
        self._progress = progress
        self._members = {name: Member(name, nodes.role(name)) for name in nodes.names}
        self._desk: Desk
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._origin_s: float | None = None
        self._end_s = 0.0
        self._ended: set[str] = set()
        self._stopping = False
        self._blame = Blame({name: nodes.role(name) for name in nodes.names})
        self._strangers: list[str] = []
        self._lost: list[dict[str, Any]] = []
        self._findings: list[Finding] = []
        self._timeline: dict[str, float] = {}
        self._began_s = time.monotonic()

    async def run(self) -> Outcome:
        """Conduct the run; whatever happens, nothing is left behind.

        Raises:
            AmmeterError: what stopped it. The rows that the nodes had until then are in the recorder.
        """
        try:
            tls.make(self._keys, [*self._nodes.names, CONTROLLER])
            try:
                await self._emulator.open(self._keys)
                self._desk = await listen(CONTROLLER, self._keys, self._emulator.host, 0, self._welcome, self._stranger)
                self._stage("opened")
                self._keep(self._watch())
                await self._unless_failed(self._prepare(list(self._members)))
                await self._unless_failed(self._connect())
                await self._unless_failed(self._check())
                await self._unless_failed(self._play())
            except BaseException:
                await self._salvage()
                raise
            return await self._finish()
        finally:
            await self._leave()

    # ---- stages ---------------------------------------------------------------------------------------------

    async def _prepare(self, names: Iterable[str]) -> None:
        """Start workers, deal them the run, wait until they are warm, slow them down."""
        names = list(names)
        await asyncio.gather(*(self._ready(self._members[name]) for name in names))
        self._stage("prepared")

    async def _ready(self, member: Member) -> None:
        start_s = self._settings.start_s
        member.begin()
        hello, prepared = member.expect("hello"), member.expect("prepared")
        await self._emulator.start(member.name, member.incarnation, self._desk.port)
        await member.until(hello, start_s, "starting")
        member.send("job", **self._job(member.name).model_dump(mode="json"))
        note = await member.until(prepared, start_s, "warming up")
        member.address = (note.get("host", str), note.get("port", int))

    def _job(self, name: str) -> Job:
        settings, nodes = self._settings, self._nodes
        return Job(
            spec=self._spec.resolved(),
            run_id=self._spec.id,
            data_root=None if self._data_root is None else str(self._data_root.resolve()),
            devices=list(nodes.devices),
            edges=list(nodes.edges),
            edge_of=dict(nodes.edge_of),
            dilation=settings.dilation,
            threads=settings.threads[name],
            paced=settings.paced,
            tls=settings.tls,
            backlog_bytes=settings.backlog_bytes,
            stall_s=settings.link_s * settings.dilation,
            link=self._emulator.link(name),
            recording=settings.recording,
        )

    async def _connect(self) -> None:
        """Everybody learns where everybody is and opens the channels that every method uses; clocks are aligned."""
        await asyncio.gather(*(self._introduce(member) for member in self._members.values()))
        for member in self._members.values():
            await self._align(member)
        self._stage("connected")

    async def _introduce(self, member: Member) -> None:
        connected = member.expect("connected")
        peers = {m.name: [*m.address, m.incarnation] for m in self._members.values() if m is not member}
        lost = [m.name for m in self._members.values() if m is not member and m.connection is None]
        first = [name for name in self._neighbours(member.name) if name not in lost]
        member.send("peers", peers=peers, lost=lost, connect=first)
        await member.until(connected, self._settings.start_s, "connecting to its peers")

    def _neighbours(self, name: str) -> list[str]:
        """Return whom a node talks to in every method: the server, its devices, its edge."""
        nodes = self._nodes
        if nodes.role(name) == "device":
            return [SERVER, *([nodes.edge_of[name]] if name in nodes.edge_of else [])]
        mine = list(nodes.devices_of(name))
        return mine + ([SERVER] if name != SERVER else list(nodes.edges))

    async def _align(self, member: Member) -> None:
        aligned = await align(member, self._settings.start_s)
        member.bundle.offset_s, member.bundle.residual_s = aligned.offset_s, aligned.residual_s

    async def _throttle(self, member: Member) -> None:
        async def measure() -> float:
            stepped = member.expect("stepped")
            member.send("probe_step", steps=1)
            note = await member.until(stepped, self._settings.start_s, "timing its step")
            return float(note.get("seconds", list)[0])

        await self._emulator.throttle(member.name, measure)

    async def _check(self) -> None:
        """Slow the nodes down, then see whether they are what they are to be."""
        await asyncio.gather(*(self._throttle(member) for member in self._members.values()))
        self._stage("throttled")
        if self._settings.probe:
            flight = Preflight(self._members, self._nodes, self._emulator.target, self._settings)
            self._findings = await flight.fly()
            refuse(self._findings)
            self._stage("probed")

    async def _play(self) -> None:
        """Start everybody at the same instant; wait until the last node of the role that ends the run has returned."""
        lead_s = _LEAD_S
        self._origin_s = time.monotonic() + lead_s
        for member in self._members.values():
            member.present = True
            self._start(member)
        await self._emulator.begin(lead_s)
        self._stage("started")
        await self._over.wait()
        self._stage("over")

    def _start(self, member: Member) -> None:
        member.send("start", offset_s=member.bundle.offset_s, origin_s=self._origin_s)

    async def _finish(self) -> Outcome:
        """Stop everybody, take the throttles off, have quality scored, collect the rows."""
        await self._stop(_STOP_S)
        present = [member for member in self._members.values() if member.connection is not None]
        fingerprints: list[list[Any]] = []
        for member in present:
            drifted = await align(member, self._settings.start_s)
            member.bundle.drift_s = drifted.offset_s - member.bundle.offset_s
            member.bundle.residual_s = max(member.bundle.residual_s, drifted.residual_s)
        await asyncio.gather(*(self._emulator.relax(member.name) for member in present))
        for member in present:
            scored = member.expect("scored")
            member.send("score")
            await self._unless_failed(member.until(scored, _SCORE_S, "scoring"))
            fingerprints += scored.result().get("fingerprints", list)
        self._stage("scored")
        bundles = [bundle for member in self._members.values() for bundle in member.bundles]
        self._write_losses()
        counts = collect(bundles, self._recorder, self._end_s, self._settings.dilation)
        self._stage("collected")
        return Outcome(
            end_s=self._end_s,
            sent=counts.sent,
            consumed=counts.consumed,
            unread=counts.unread,
            undelivered=counts.undelivered,
            in_flight=counts.in_flight,
            clock="wall",
            fingerprints=fingerprints,
            notes=self._notes(),
        )

    async def _stop(self, within_s: float) -> None:
        self._stopping = True
        present = [member for member in self._members.values() if member.connection is not None]
        waiting = [(member, member.expect("stopped")) for member in present]
        for member, _ in waiting:
            member.send("stop")
        for member, stopped in waiting:
            member.bundle.stopped = await member.until(stopped, within_s, "stopping")

    async def _salvage(self) -> None:
        """The run has failed: keep the rows that can still be had."""
        if self._origin_s is None:
            return
        self._end_s = max(0.0, self._now())
        with contextlib.suppress(AmmeterError):
            await self._stop(_SALVAGE_S)
        self._write_losses()
        bundles = [bundle for member in self._members.values() for bundle in member.bundles]
        with contextlib.suppress(AmmeterError):  # what stopped the run is what the user is told
            collect(bundles, self._recorder, self._end_s, self._settings.dilation)

    async def _leave(self) -> None:
        """Say good-bye to the workers and remove everything that was made for them."""
        self._stopping = True
        for member in self._members.values():
            member.send("bye")
        gone = [self._say_bye(member.connection) for member in self._members.values() if member.connection]
        await asyncio.gather(*gone, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_desk"):
            await self._desk.close()
        await self._emulator.close()

    @staticmethod
    async def _say_bye(connection: Connection) -> None:
        await asyncio.wait_for(connection.wait_closed(), 2.0)

    # ---- what happens meanwhile -----------------------------------------------------------------------------

    def _welcome(self, connection: Connection) -> None:
        self._keep(self._listen(connection))

    async def _listen(self, connection: Connection) -> None:
        member = self._members.get(connection.peer)
        if member is None:
            connection.close()
            return
        try:
            first = await connection.receive()
            if first.kind != "hello" or first.get("incarnation", int) != member.incarnation or member.connection:
                connection.close()  # a leftover of an earlier incarnation
                return
            member.connection = connection
            member.hears(first)
            while True:
                note = await connection.receive()
                member.heard_s = time.monotonic()
                self._hear(member, note)
        except ConnectionGone as error:
            if member.connection is connection:
                how = self._emulator.gone().get(member.name)
                await self._lose(member, how or f"has left ({error})")
        except TransportError as error:
            if member.connection is connection:
                await self._lose(member, f"said what makes no sense ({error})")
            connection.close()

    def _hear(self, member: Member, note: Note) -> None:
        kind = note.kind
        if kind == "names":
            member.bundle.names += note.get("names", list)
        elif kind == "rows":
            table = member.bundle.tables.setdefault(note.get("table", str), bytearray())
            table += note.get("data", bytes)
        elif kind == "beat":
            member.moved, member.stuck = note.get("moved", int), note.get("stuck", bool)
            member.wants = note.get("wants", str)
        elif kind == "role_over":
            self._role_over(member, note.get("at_s", float))
        elif kind == "unreachable":
            self._keep(self._unreachable(member, note.get("peer", str), note.get("why", str)))
        elif kind == "stranger":
            self._strangers.append(f"{member.name}: {note.get('what', str)}")
        elif kind == "failed":
            self._fail(_error(member, note))
        else:
            member.hears(note)

    def _role_over(self, member: Member, at_s: float) -> None:
        member.over = True
        if member.role == self._spec.method.ends:
            self._ended.add(member.name)
            self._end_s = max(self._end_s, at_s)
            ending = [m for m in self._members.values() if m.role == self._spec.method.ends]
            if len(self._ended) == len(ending):
                self._stopping = True
                self._over.set()

    async def _unreachable(self, member: Member, peer: str, why: str) -> None:
        if self._stopping or not self._members[peer].present or not member.present:
            return
        # a peer that is dying is known by its death, not by what its connections say of it
        await asyncio.sleep(_WATCH_S)
        gone = self._emulator.gone()
        if peer in gone or self._members[peer].connection is None or self._stopping:
            return
        blamed = self._members[self._blame.blame(member.name, peer)]
        await self._lose(blamed, f"cannot be reached ({why})")

    async def _lose(self, member: Member, why: str) -> None:
        """A node is gone: say so, and do what `on_loss` says."""
        if member.connection is None and not member.present:
            return
        connection, was_present = member.connection, member.present
        member.lose(why)
        member.present = False
        if connection is not None:
            connection.close()
        if self._stopping:
            return
        settings = self._settings
        at_s = self._now() if self._origin_s is not None else None
        when = "before the run began" if at_s is None or not was_present else f"{at_s:.3f} s into the run"
        sentence = f"{member.name} {why}, {when}"
        ends = member.role == self._spec.method.ends
        if not was_present or settings.on_loss == "fail" or ends:
            rule = "testbed.on_loss: fail" if settings.on_loss == "fail" else "the run ends with it"
            self._fail(PeerLost(f"{sentence}; {rule}" if was_present else sentence))
            return
        assert at_s is not None
        member.bundle.until_s = at_s
        self._lost.append({"node": member.name, "incarnation": member.incarnation, "at_s": at_s, "why": why})
        for other in self._members.values():
            if other is not member and other.present:
                other.send("lost", name=member.name)
        await self._emulator.kill(member.name)
        if settings.on_loss == "rejoin" and member.incarnation < settings.rejoins:
            self._keep(self._rejoin(member))

    async def _rejoin(self, member: Member) -> None:
        """Start a lost node anew; it takes part from the next round."""
        try:
            await self._ready(member)
            await self._introduce(member)
            await self._align(member)
            await self._throttle(member)
        except TestbedError as error:
            self._lost[-1]["rejoin"] = str(error)
            return
        if self._stopping:
            return
        self._blame.forget(member.name)
        member.present = True
        host, port = member.address
        self._lost.append({"node": member.name, "incarnation": member.incarnation, "returned_s": self._now()})
        for other in self._members.values():
            if other is not member and other.present:
                other.send("returned", name=member.name, host=host, port=port, incarnation=member.incarnation)
        self._start(member)

    async def _watch(self) -> None:
        """See who dies in silence, and whether anything moves."""
        settings = self._settings
        silence_s = settings.silence_s * max(1.0, settings.dilation)
        progress = Progress(settings.hang_s * settings.dilation)
        while not self._stopping:
            await asyncio.sleep(_WATCH_S)
            for name, how in self._emulator.gone().items():
                member = self._members[name]
                if not self._stopping and (member.connection is not None or member.incarnation >= 0):
                    await self._lose_started(member, how)
            if self._origin_s is None or self._now() <= 0:
                continue
            for member in self._members.values():
                silent_s = time.monotonic() - max(member.heard_s, self._origin_s)
                if member.present and silent_s > silence_s:
                    await self._lose(member, f"has said nothing for {silent_s:.1f} s")
            try:
                progress.check(self._members.values(), self._now())
            except AmmeterError as error:
                self._fail(error)
            if self._progress is not None:
                self._progress(self._now())

    async def _lose_started(self, member: Member, how: str) -> None:
        """A worker's process has ended, whether it had joined or not."""
        if member.connection is not None or member.present:
            await self._lose(member, how)
        elif self._origin_s is None:
            member.lose(how)
            self._fail(TestbedError(f"{member.name} {how}, before it had joined the run"))
        else:
            member.lose(how)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done() and not self._over.is_set():
            self._failure.set_result(error)

    async def _unless_failed(self, stage: Coroutine[Any, Any, Any]) -> None:
        """Go through a stage; what any node fails of ends it."""
        task = asyncio.ensure_future(stage)
        try:
            await asyncio.wait([task, self._failure], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._failure.result()
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # ---- small things ---------------------------------------------------------------------------------------

    def _now(self) -> float:
        assert self._origin_s is not None
        return (time.monotonic() - self._origin_s) / self._settings.dilation

    def _stage(self, name: str) -> None:
        self._timeline[name] = round(time.monotonic() - self._began_s, 3)

    def _keep(self, coroutine: Coroutine[Any, Any, Any]) -> Callable[[], None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def over(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        task.add_done_callback(over)
        return task.cancel  # type: ignore[return-value]

    def _stranger(self, address: str, error: TransportError) -> None:
        self._strangers.append(f"controller: {address}: {error}")

    def _write_losses(self) -> None:
        """Who was lost and who came back are marks of the run."""
        mark, ids = self._recorder.mark, self._recorder.id
        for found in self._lost:
            kind = record.LOST if "at_s" in found else record.RETURNED
            at_s = float(found.get("at_s", found.get("returned_s", 0.0)))
            node = ids(found["node"])
            mark.append(mark.pack(node, 0, kind, node, found["incarnation"], min(at_s, self._end_s)))

    def _notes(self) -> dict[str, Any]:
        clocks = {
            bundle.node: {"offset_s": bundle.offset_s, "residual_s": bundle.residual_s, "drift_s": bundle.drift_s}
            for member in self._members.values()
            for bundle in member.bundles[-1:]
        }
        pacing = {
            bundle.node: {key: bundle.stopped[key] for key in ("paced", "late", "late_s", "cpu_s")}
            for member in self._members.values()
            for bundle in member.bundles[-1:]
            if bundle.stopped is not None
        }
        return {
            "dilation": self._settings.dilation,
            "stages_s": self._timeline,
            "clocks": clocks,
            "pacing": pacing,
            "preflight": [finding.row() for finding in self._findings],
            "losses": self._lost,
            "strangers": self._strangers[:100],
            "throttles": self._emulator.notes(),
        }

    @property
    def timings(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return what each node has computed, by digest (see harness.worker.processor.Processor.timings)."""
        return {
            member.name: {row["digest"]: row for row in member.bundle.stopped.get("timings", list)}
            for member in self._members.values()
            if member.bundles and member.bundle.stopped is not None
        }


def _error(member: Member, note: Note) -> AmmeterError:
    """Return a worker's failure as the error it was there."""
    kind = getattr(errors, note.get("error", str), None)
    where = note.get("where", str)
    message = (
        f"{note.get('message', str)} ({where})" if where and member.name not in where else note.get("message", str)
    )
    trace = note.get("traceback", str)
    if kind is None:
        kind = TestbedError
        message = f"{member.name}: {message}"
    error: AmmeterError = kind(message if not trace else f"{message}\n{trace}")
    return error
