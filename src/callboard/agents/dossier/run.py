"""Kill the worker of a long turn, on purpose, and have another finish it: server, processes, kills, account."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from callboard.agents.digest import stage
from callboard.agents.digest.html import plural
from callboard.agents.dossier.judge import Kill, Verdict, judge
from callboard.agents.dossier.note import Note, Notes
from callboard.agents.dossier.report import FILE
from callboard.agents.dossier.scene import Event, News, Scene, Tell
from callboard.agents.dossier.service import LEAST_STEPS, NOTES, About, Answer, Compile, Dossier, Question
from callboard.runtime import roster, subjects
from callboard.runtime.actor import cursor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import CallboardError, InputError

SERVICE: Final = "callboard.agents.dossier.service"
WORKERS: Final = 2
QUESTIONS: Final[tuple[About, ...]] = ("size", "language", "topic")
LOOK_EVERY_S: Final = 0.03
CURSOR_EVERY_S: Final = 0.25
SILENCE_S: Final = 180.0
"""A turn that notes nothing for so long, and for ten steps' time, has stopped."""

BEAT_WITHIN_S: Final = 2.5
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Options(Struct, frozen=True, kw_only=True):
    """What to read and how to disturb it.

    Attributes:
        folder: What to read.
        out: Where report and notes go.
        data_dir: Where the server keeps its streams; an earlier demonstration's data there is removed first.
        turn_s: How long the turn shall take, kills not counted: each step takes its share of it at least.
        steps: Steps of the turn; fewer when there are fewer files.
        kills: How often to kill the worker that runs the turn.
        max_files: Files at most.
    """

    folder: Path
    out: Path
    data_dir: Path
    turn_s: float = 45.0
    steps: int = 30
    kills: int = 1
    max_files: int = 5000


class Shown(Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        actor: Its address.
        workers: What each process was called, and its worker's id.
        answers: What the questions were answered, in their order.
        seconds: From the first sign of the turn to the last answer.
    """

    verdict: Verdict
    actor: str
    report: Path
    notes: Path
    workers: dict[int, tuple[str, str]]
    answers: list[str]
    seconds: float


async def run_takeover(options: Options, tell: Tell) -> Shown:
    """Run it to its end. Cancelling stops workers and server and leaves nothing running.

    Raises:
        InputError: If the folder holds nothing to read, or report or data cannot be written where they shall go.
        DataFolderInUseError: If another demonstration or server runs on the data folder.
        CallboardError: If server or workers do not start, or the turn stops moving.
    """
    skip = (options.out, options.data_dir)
    found = await stage.apart(lambda: stage.listed(options.folder, max_files=options.max_files, skip=skip))
    stage.check_out(options.out)
    await stage.make_room(options.data_dir)
    steps = max(LEAST_STEPS, min(options.steps, len(found.files) + LEAST_STEPS - 1))
    scene = Scene(total=steps, pace_s=options.turn_s / steps)
    few = f" (for {plural(len(found.files), 'file')})" if steps < options.steps else ""
    text = f"a server that syncs every write, {WORKERS} workers; one turn of {steps} steps{few}"
    facts: dict[str, object] = {"files": len(found.files), "steps": steps, "pace_s": scene.pace_s}
    tell(scene, News(event="starting", text=text, facts=facts))
    async with stage.server(options.data_dir) as (url, bus):
        # not sooner: another demonstration on this data would still be writing there
        _clear(options.out)
        async with stage.workers(SERVICE, processes=WORKERS, concurrency=1, url=url) as group:
            return await stage.until_group_ends(group, _Takeover(bus, options, scene, tell).run())


def _clear(out: Path) -> None:
    """Remove what an earlier run left, so that nothing old is counted or read.

    Raises:
        InputError: If it cannot be removed.
    """
    try:
        for name in (NOTES, FILE):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        message = f"{error.filename} cannot be replaced: {error.strerror}; name another folder with --out"
        raise InputError(message) from error


class _Crew:
    """The workers, by letter."""

    def __init__(self, beats: roster.Roster) -> None:
        self._beats = beats
        self._letters: dict[int, str] = {}
        self.killed: set[int] = set()

    def look(self) -> list[int]:
        """Return the processes that are seen for the first time."""
        new = [pid for pid in self.pids if pid not in self._letters]
        for pid in new:
            self.letter(pid)
        return new

    @property
    def pids(self) -> dict[int, str]:
        """Every process that was ever ready, with its worker's id."""
        return {pid: worker for worker, pid in stage.ready_in(self._beats).items()}

    def letter(self, pid: int) -> str:
        """Return what a process is called."""
        known = len(self._letters)
        return self._letters.setdefault(pid, _LETTERS[known] if known < len(_LETTERS) else f"W{known + 1}")

    def letter_of(self, worker: str) -> str:
        """Return what a worker is called, "" for one that was not heard."""
        beat = self._beats.beats.get(worker)
        return self.letter(beat.pid) if beat is not None else ""

    def has_heir(self, victim: int) -> bool:
        """Return whether another worker is alive that could take over."""
        now_s = SYSTEM_CLOCK.monotonic()
        return any(
            pid != victim and pid not in self.killed and now_s - self._beats.heard_at[worker] < BEAT_WITHIN_S
            for pid, worker in self.pids.items()
        )

    def known(self) -> dict[int, tuple[str, str]]:
        """Return letter and id by process."""
        workers = self.pids
        return {pid: (letter, workers.get(pid, "")) for pid, letter in self._letters.items()}


class _Takeover:
    """One run, once server and workers are on their way."""

    def __init__(self, bus: Bus, options: Options, scene: Scene, tell: Tell) -> None:
        self._bus = bus
        self._options = options
        self._scene = scene
        self._tell = tell
        self._notes = Notes(options.out.resolve() / NOTES)
        self._ref = ActorRef(bus, Address(Dossier.actor_name, options.folder.resolve().name or "root"))
        self._mailbox = subjects.mailbox(self._ref.address.type, "*", self._ref.address.key)
        self._partition = 0
        self._last: Note | None = None
        self._moved_s = SYSTEM_CLOCK.monotonic()
        self._kills: list[Kill] = []
        self._entered: Note | None = None
        self._replayed = 0
        self._titles: dict[int, str] = {}
        self._answers: list[str] = []

    async def run(self) -> Shown:
        async with roster.listening(self._bus) as beats, self._questions() as asked:
            await stage.until_ready(beats, WORKERS)
            crew = _Crew(beats)
            names = [f"{crew.letter(pid)} is {crew.pids[pid]} (process {pid})" for pid in crew.look()]
            self._say("ready", "; ".join(names), workers=list(crew.pids.values()))
            await self._ref.tell(self._work())
            mail = await self._bus.get_last(subjects.ACTORS, self._mailbox)
            self._partition = int(mail.subject.split(".")[3]) if mail is not None else 0
            await self._until_begun(crew)
            begun_s = self._moved_s
            asking = asyncio.create_task(self._ask_all(asked), name="questions")
            try:
                await self._follow(crew, asked, asking)
            finally:
                asking.cancel()
                await asyncio.wait([asking])
            seconds = SYSTEM_CLOCK.monotonic() - begun_s
            crew.look()
        notes = Notes(self._notes.path).more()
        wanted = self._options.kills
        verdict = judge(notes, self._kills, steps=self._scene.total, questions=len(QUESTIONS), kills_wanted=wanted)
        return Shown(
            verdict=verdict,
            actor=str(self._ref.address),
            report=self._options.out / FILE,
            notes=self._options.out / NOTES,
            workers=crew.known(),
            answers=self._answers,
            seconds=seconds,
        )

    def _work(self) -> Compile:
        options = self._options
        return Compile(
            folder=str(options.folder.resolve()),
            out=str(options.out.resolve()),
            data_dir=str(options.data_dir.resolve()),
            steps=self._scene.total,
            pace_s=self._scene.pace_s,
            max_files=options.max_files,
        )

    async def _until_begun(self, crew: _Crew) -> None:
        while not self._read(crew):
            self._check_silence()
            await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)

    # --- the questions behind the turn

    @asynccontextmanager
    async def _questions(self) -> AsyncIterator[list[asyncio.Task[Answer]]]:
        asked: list[asyncio.Task[Answer]] = []
        try:
            yield asked
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)

    async def _ask_all(self, asked: list[asyncio.Task[Answer]]) -> None:
        """Ask one after the other; each is in the mailbox before the next is asked."""
        for number, about in enumerate(QUESTIONS, start=1):
            before = await self._bus.get_last(subjects.ACTORS, self._mailbox)
            question = Question(number=number, about=about)
            ask = self._ref.ask(
                question, timeout_s=self._options.turn_s + 3600, idempotency_key=f"question-{number}", returns=Answer
            )
            asked.append(asyncio.create_task(ask, name=f"question-{number}"))
            while not asked[-1].done():
                last = await self._bus.get_last(subjects.ACTORS, self._mailbox)
                if last is not None and (before is None or last.seq > before.seq):
                    break
                await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)
            self._scene.waiting += 1
        text = f"{len(QUESTIONS)} questions wait in the mailbox behind the turn"
        self._say("asked", text, waiting=len(QUESTIONS))

    def _hear(self, crew: _Crew, asked: Sequence[asyncio.Task[Answer]]) -> bool:
        """Take in the answers that have come, in their order; return whether it was the last one."""
        while len(self._answers) < len(asked) and asked[len(self._answers)].done():
            answer = asked[len(self._answers)].result()
            # the answer may have overtaken the last notes before it
            self._read(crew)
            self._answers.append(answer.text)
            self._scene.waiting -= 1
            self._scene.step, self._scene.runner = 0, ""
            text = f"question {answer.number}, about its {QUESTIONS[answer.number - 1]}: {answer.text}"
            self._say("answered", text, number=answer.number, answer=answer.text)
        return len(self._answers) == len(QUESTIONS)

    # --- watching and killing

    async def _follow(self, crew: _Crew, asked: Sequence[asyncio.Task[Answer]], asking: asyncio.Task[None]) -> None:
        looked_s = float("-inf")
        while not self._hear(crew, asked):
            if asking.done() and not asking.cancelled():
                asking.result()  # raises what went wrong
            self._read(crew)
            self._kill_in_time(crew)
            for pid in crew.look():
                text = f"{crew.letter(pid)} is {crew.pids[pid]} (process {pid}), started in the place of the dead one"
                self._say("replaced", text, worker=crew.pids[pid])
            if SYSTEM_CLOCK.monotonic() - looked_s > CURSOR_EVERY_S:
                looked_s = SYSTEM_CLOCK.monotonic()
                await self._look_at_cursor(crew)
            self._check_silence()
            await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)

    def _read(self, crew: _Crew) -> bool:
        """Take in what was noted meanwhile; return whether anything was."""
        found = self._notes.more()
        for note in found:
            self._take(note, crew)
            self._last = note
            self._moved_s = SYSTEM_CLOCK.monotonic()
        return bool(found)

    def _take(self, note: Note, crew: _Crew) -> None:
        scene = self._scene
        letter = crew.letter(note.pid)
        match note.what:
            case "turn":
                scene.runner, scene.epoch = letter, note.epoch
                self._entered, self._replayed = note, 0
                if not self._kills:
                    self._say("begun", f"{letter} began the turn, as owner of epoch {note.epoch}", epoch=note.epoch)
            case "begin":
                scene.step, scene.runner = note.number, letter
                self._titles[note.number] = note.title
                self._went_on(note, letter)
            case "have":
                self._replayed += 1
            case "filed":
                scene.by = {**scene.by, note.number: letter}
                text = f"step {note.number}/{scene.total} by {letter}: {self._titles.get(note.number, '')}"
                worker = crew.pids.get(note.pid, "")
                facts: dict[str, object] = {"epoch": note.epoch, "attempt": note.attempt, "worker": worker}
                self._say("step", text, step=note.number, total=scene.total, **facts)
            case "finished" | "answered":
                pass

    def _went_on(self, note: Note, letter: str) -> None:
        """Say what a takeover came to, at the first step that the new worker runs."""
        entered = self._entered
        if entered is None or not self._kills or note.pid in {kill.pid for kill in self._kills}:
            return
        self._entered = None
        self._scene.killed_at_s = None
        kill = self._kills[-1]
        after_s = entered.at_s - kill.at_s
        text = (
            f"{letter} went on {after_s:.2f} s after the kill, as owner of epoch {note.epoch}: "
            f"{self._replayed} steps from the journal, next is step {note.number}"
        )
        facts: dict[str, object] = {"epoch": note.epoch, "replayed": self._replayed, "step": note.number}
        self._say("taken_over", text, after_s=round(after_s, 3), **facts)

    def _kill_in_time(self, crew: _Crew) -> None:
        """Kill the worker of the turn once it is in the middle of a step that is far enough."""
        last, scene = self._last, self._scene
        if len(self._kills) == self._options.kills or last is None or last.what != "begin":
            return
        due = max(1, round(scene.total * (len(self._kills) + 1) / (self._options.kills + 1)))
        is_middle = SYSTEM_CLOCK.monotonic() - last.at_s >= scene.pace_s / 2
        if last.number < due or not is_middle or last.pid not in crew.pids or not crew.has_heir(last.pid):
            return
        at_s = SYSTEM_CLOCK.monotonic()
        try:
            os.kill(last.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        crew.killed.add(last.pid)
        self._kills.append(Kill(pid=last.pid, at_s=at_s, step=last.number))
        scene.kills = [*scene.kills, last.number]
        scene.killed_at_s = at_s
        self._last = None
        letter = crew.letter(last.pid)
        text = f"SIGKILL to {letter} (process {last.pid}) in the middle of step {last.number}; nobody is told"
        self._say("killed", text, worker=crew.pids[last.pid], pid=last.pid, step=last.number)

    async def _look_at_cursor(self, crew: _Crew) -> None:
        """Read from the broker who owns the actor's partition."""
        place = subjects.cursor(self._ref.address.type, self._partition)
        stored = await self._bus.get_last(subjects.ACTORS, place)
        if stored is not None:
            found = cursor.decode(stored.data)
            self._scene.owner = crew.letter_of(found.owner)
            self._scene.epoch = max(self._scene.epoch, found.epoch)
            self._tell(self._scene, None)

    def _check_silence(self) -> None:
        silent_s = SYSTEM_CLOCK.monotonic() - self._moved_s
        if silent_s > SILENCE_S + 10 * self._scene.pace_s:
            message = f"the turn has noted nothing for {silent_s:.0f} s; see {self._notes.path}"
            raise CallboardError(message)

    def _say(self, event: Event, text: str, **facts: object) -> None:
        self._tell(self._scene, News(event=event, text=text, facts=facts))
