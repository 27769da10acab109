"""Digest a folder on real workers: server, processes, tasks, one SIGKILL in the middle, the merge, the report."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.agents.digest import stage
from callboard.agents.digest.crew import Crew, Summary
from callboard.agents.digest.ledger import Held, Kill, Ledger, Record, account, read_record
from callboard.agents.digest.merge import Corpus
from callboard.agents.digest.report import Run, Written, write_report
from callboard.agents.digest.service import FileTask, MergeTask
from callboard.agents.digest.walk import Walk
from callboard.runtime import ids, roster, subjects
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.client import Client, TaskHandle
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.lease import HoldsAnswer, HoldsQuestion
from callboard.runtime.record import TaskRecord
from callboard.runtime.version import VERSION

KILL_AT = 0.4
HOLDS_WAIT_S = 0.15
MERGE_DEADLINE_S = 900.0
SERVICE = "callboard.agents.digest.service"


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What to digest and how.

    Attributes:
        folder: What to read.
        out: Where the report goes.
        data_dir: Where the server keeps its streams; an earlier demo's data there is removed first.
        processes: Worker processes.
        concurrency: Slots of each.
        kill: Whether to kill one worker in the middle.
        max_files: Files at most.
    """

    folder: Path
    out: Path
    data_dir: Path
    processes: int = 3
    concurrency: int = 2
    kill: bool = True
    max_files: int = 5000


class Progress(Struct, frozen=True, kw_only=True):
    """How far it is.

    Attributes:
        stage: ``listing``, ``starting``, ``digesting``, ``killed``, ``merging``, ``writing``, ``written``.
        done: Files digested.
        total: Files to digest, 0 before they are known.
        text: What is happening, where a person wants to know.
    """

    stage: str
    done: int = 0
    total: int = 0
    text: str = ""


class Demo(Struct, frozen=True, kw_only=True):
    """What came of it."""

    written: Written
    ledger: Ledger
    summary: Summary
    seconds: float


Tell = Callable[[Progress], None]


async def run_demo(options: DemoOptions, tell: Tell) -> Demo:
    """Digest a folder and write the report. Cancelling it stops workers and server and leaves nothing running.

    Raises:
        InputError: If the folder holds nothing to read, or report or data cannot be written where they shall go.
        DataFolderInUseError: If another demo or server runs on the data folder.
        CallboardError: If server or workers do not start, or the group of workers ends early.
    """
    tell(Progress(stage="listing"))
    skip = (options.out, options.data_dir)
    found = await stage.apart(lambda: stage.listed(options.folder, max_files=options.max_files, skip=skip))
    stage.check_out(options.out)
    await stage.make_room(options.data_dir)
    tell(Progress(stage="starting", total=len(found.files), text="an embedded nats-server"))
    async with stage.server(options.data_dir) as (url, bus):
        text = f"{options.processes} worker process{'es' * (options.processes != 1)}"
        tell(Progress(stage="starting", total=len(found.files), text=text))
        count, slots = options.processes, options.concurrency
        async with stage.workers(SERVICE, processes=count, concurrency=slots, url=url) as group:
            return await stage.until_group_ends(group, _Digesting(bus, options, found, tell).run())


class _Digesting:
    """One run, once server and workers are on their way."""

    def __init__(self, bus: Bus, options: DemoOptions, found: Walk, tell: Tell) -> None:
        self._bus = bus
        self._client = Client(bus)
        self._options = options
        self._found = found
        self._tell = tell
        self._run = ids.new_token(3)
        self._clock = SYSTEM_CLOCK
        self._workers: dict[str, int] = {}
        self._finished: set[str] = set()
        self._kill: Kill | None = None
        self._folder = options.folder.resolve().name or str(options.folder)
        self._crew = Crew(bus, self._run)

    async def run(self) -> Demo:
        async with roster.listening(self._bus) as beats:
            await stage.until_ready(beats, self._options.processes)
            self._note_workers(beats)
            begun_s, started_at = self._clock.monotonic(), self._clock.now()
            labels = await self._submit()
            planning = asyncio.create_task(self._crew.plan(self._folder, self._found), name="demo-planner")
            try:
                await self._follow(labels, beats)
                merged = await self._merge(list(labels))
                finished_at = self._clock.now()
                self._note_workers(beats)
                self._tell(Progress(stage="writing", done=len(labels), total=len(labels)))
                corpus = msgspec.convert(await self._client.value_of(merged), Corpus)
                summary = await self._crew.write(self._folder, corpus, await planning)
            finally:
                planning.cancel()
        records = [record async for record in self._records()]
        kill, workers = self._kill, tuple(self._workers)
        if kill is not None:
            kill = msgspec.structs.replace(kill, replaced_by=list(workers[self._options.processes :]))
        facts = self._facts(started_at, finished_at, summary)

        def write() -> tuple[Written, Ledger]:
            book = account([*labels, merged.task], records, kill=kill, labels=labels, workers=workers)
            return write_report(self._options.out, corpus, book, facts), book

        written, book = await stage.apart(write)
        self._tell(Progress(stage="written", done=len(labels), total=len(labels)))
        return Demo(written=written, ledger=book, summary=summary, seconds=self._clock.monotonic() - begun_s)

    def _facts(self, started_at: datetime, finished_at: datetime, summary: Summary) -> Run:
        return Run(
            folder=self._folder,
            summary=summary,
            started_at=started_at,
            finished_at=finished_at,
            left_out=self._found.left_out,
            left_out_total=self._found.left_out_total,
            kill_wanted=self._options.kill,
            version=VERSION,
        )

    def _note_workers(self, beats: roster.Roster) -> None:
        for worker, pid in stage.ready_in(beats).items():
            self._workers.setdefault(worker, pid)

    async def _submit(self) -> dict[str, str]:
        root = str(self._options.folder.resolve())
        # large files first and last would hide the kill: keep the walk's order
        labels = {f"digest/{self._run}/{n}": file.path for n, file in enumerate(self._found.files)}
        tasks = [FileTask(root=root, path=path) for path in labels.values()]
        handles = await self._client.submit_many("digest", tasks, task_ids=list(labels), timeout_s=120.0)
        refused = [handle for handle in handles if not isinstance(handle, TaskHandle)]
        if refused:
            raise refused[0]
        return labels

    async def _follow(self, labels: dict[str, str], beats: roster.Roster) -> None:
        total = len(labels)
        prefix = len("cb.result.digest.")
        reader = self._bus.read(subjects.LEDGER, subjects=["cb.result.digest.*"], start_seq=1, follow=True)
        async for stored in reader:
            self._finished.add(subjects.unescape(stored.subject[prefix:]))
            self._tell(Progress(stage="digesting", done=len(self._finished), total=total))
            if self._options.kill and self._kill is None and len(self._finished) >= total * KILL_AT:
                await self._kill_one(list(labels), beats)
            if len(self._finished) >= total:
                return

    async def _kill_one(self, task_ids: list[str], beats: roster.Roster) -> None:
        """Kill a worker that holds a task right now; when none holds any, the next finished task asks again."""
        self._note_workers(beats)
        open_ids = [task_id for task_id in task_ids if task_id not in self._finished][:500]
        answer = await self._who_holds(open_ids)
        if answer is None:
            return
        try:
            os.kill(self._workers[answer.worker], signal.SIGKILL)
        except ProcessLookupError:
            return
        tasks = [Held(task=task) for task in answer.held]
        self._kill = Kill(worker=answer.worker, at=self._clock.now(), held=tasks)
        holds = f"{len(tasks)} task{'s' * (len(tasks) != 1)}"
        text = f"SIGKILL to {answer.worker} on purpose; it just said it holds {holds}"
        self._tell(Progress(stage="killed", done=len(self._finished), total=len(task_ids), text=text))

    async def _who_holds(self, task_ids: list[str]) -> HoldsAnswer | None:
        """Return the first worker that says it holds any of the tasks: what it says is milliseconds old, not more."""
        first: asyncio.Future[HoldsAnswer] = asyncio.get_running_loop().create_future()

        def hear(message: Message) -> None:
            answer = msgspec.json.decode(message.data, type=HoldsAnswer)
            if answer.held and answer.worker in self._workers and not first.done():
                first.set_result(answer)

        inbox = self._bus.inbox()
        subscription = await self._bus.subscribe(inbox, hear)
        try:
            question = msgspec.json.encode(HoldsQuestion(task_ids))
            await self._bus.publish(subjects.CTL_HOLDS, question, reply=inbox)
            await asyncio.wait([first], timeout=HOLDS_WAIT_S)
        finally:
            await subscription.close()
        return first.result() if first.done() else None

    async def _merge(self, task_ids: list[str]) -> TaskRecord:
        self._tell(Progress(stage="merging", done=len(task_ids), total=len(task_ids)))
        task = MergeTask(tasks=task_ids)
        handle = await self._client.submit("merge", task, id=f"merge/{self._run}", notify=True)
        record = await self._client.wait_record(handle, timeout_s=MERGE_DEADLINE_S)
        if record.status != "completed":
            await self._client.value_of(record)  # raises with the cause
        return record

    async def _records(self) -> AsyncIterator[Record]:
        async for stored in self._bus.read(subjects.LEDGER, subjects=["cb.result.>"], start_seq=1):
            yield read_record(stored.data)
