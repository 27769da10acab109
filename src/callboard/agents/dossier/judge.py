"""What the notes of a turn say about the promises: computed from the file alone. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from callboard.agents.dossier.note import Note


class Kill(Struct, frozen=True, kw_only=True):
    """A SIGKILL: to which process, when (machine's monotonic clock), and in which step."""

    pid: int
    at_s: float
    step: int


class Run(Struct, kw_only=True):
    """One run of the turn by one process.

    Attributes:
        begun_s: Its first sign, by the machine's monotonic clock.
        called: Steps whose function it called, in order.
        went_on: Steps whose value it had, in order.
    """

    pid: int
    attempt: int
    epoch: int
    begun_s: float
    called: list[int]
    went_on: list[int]

    @property
    def replayed(self) -> list[int]:
        """Steps whose value it took from the journal."""
        called = set(self.called)
        return [number for number in self.went_on if number not in called]


class Takeover(Struct, frozen=True, kw_only=True):
    """What followed a kill.

    Attributes:
        after_s: From the kill to the first sign of another process on the turn; None when there was none.
        pid: That process, 0 when there was none.
        epoch: Its ownership.
    """

    kill: Kill
    after_s: float | None
    pid: int = 0
    epoch: int = 0


class Verdict(Struct, frozen=True, kw_only=True):
    """What the notes come to; ``problems`` is empty when every promise was kept.

    Attributes:
        steps: Steps the turn was to have.
        runs: Runs of the turn in the order in which they began.
        ran: Steps filed by each process.
        replayed: Values that later runs took from the journal, in all.
        again: Steps called once more because no value stood on record: those that a kill cut off.
        repeated: Steps called although their value stood on record.
        doubled: Steps that had their effect twice.
        missing: Steps that had none, or whose value the turn never had.
        overlaps: Steps called by a run after a later one had begun.
        order: ``turn``, then the numbers of the questions, in the order in which they were handled.
        questions: How many questions waited behind the turn.
        takeovers: One for each kill.
        kills_wanted: How many kills there were to be.
    """

    steps: int
    runs: list[Run]
    ran: dict[int, int]
    replayed: int
    again: list[int]
    repeated: list[int]
    doubled: list[int]
    missing: list[int]
    overlaps: list[int]
    order: list[str]
    questions: int
    takeovers: list[Takeover]
    kills_wanted: int

    @property
    def is_in_order(self) -> bool:
        """Whether the turn was handled before the questions behind it, and each of these once, in its place."""
        return self.order == ["turn", *map(str, range(1, self.questions + 1))]

    @property
    def problems(self) -> list[str]:
        """What is broken, in words; a kill that was wanted and did not come about has shown nothing and is one."""
        lists = {
            "recorded steps repeated": self.repeated,
            "effects had twice": self.doubled,
            "steps without effect or record": self.missing,
            "steps run by two at once": self.overlaps,
            "kills that nobody took over from": [t.kill.step for t in self.takeovers if t.after_s is None],
        }
        found = [f"{name}: {', '.join(map(str, what))}" for name, what in lists.items() if what]
        if not self.is_in_order:
            found.append(f"mail handled in the order {', '.join(self.order) or 'of nothing at all'}")
        if len(self.takeovers) < self.kills_wanted:
            found.append(
                f"{len(self.takeovers)} of {self.kills_wanted} kills came about before the turn was over; give it "
                "more steps or more minutes"
            )
        return found


def judge(
    notes: Iterable[Note], kills: Sequence[Kill], *, steps: int, questions: int, kills_wanted: int | None = None
) -> Verdict:
    """Return what the notes, in the order of the file, say.

    Args:
        notes: All of them.
        kills: What was killed, in order.
        steps: Steps the turn was to have.
        questions: Questions that waited behind it.
        kills_wanted: Kills there were to be; default: those there were.
    """
    runs: list[Run] = []
    filed: list[Note] = []
    begun: set[int] = set()
    have: set[int] = set()
    again: list[int] = []
    repeated: list[int] = []
    overlaps: list[int] = []
    order: list[str] = []
    for note in notes:
        match note.what:
            case "turn":
                runs.append(_run(note))
            case "begin":
                _run_of(runs, note).called.append(note.number)
                if note.number in have:
                    repeated.append(note.number)
                elif note.number in begun:
                    again.append(note.number)
                if _run_of(runs, note) is not runs[-1]:
                    overlaps.append(note.number)
                begun.add(note.number)
            case "filed":
                filed.append(note)
            case "have":
                _run_of(runs, note).went_on.append(note.number)
                have.add(note.number)
            case "finished":
                order.append("turn")
            case "answered":
                order.append(str(note.number))
    counts = Counter(note.number for note in filed)
    return Verdict(
        steps=steps,
        runs=runs,
        ran=dict(Counter(note.pid for note in filed)),
        replayed=sum(len(run.replayed) for run in runs[1:]),
        again=again,
        repeated=repeated,
        doubled=sorted(number for number, count in counts.items() if count > 1),
        missing=[number for number in range(1, steps + 1) if number not in counts or number not in have],
        overlaps=overlaps,
        order=order,
        questions=questions,
        takeovers=[_takeover(kill, runs) for kill in kills],
        kills_wanted=len(kills) if kills_wanted is None else kills_wanted,
    )


def _run(note: Note) -> Run:
    return Run(pid=note.pid, attempt=note.attempt, epoch=note.epoch, begun_s=note.at_s, called=[], went_on=[])


def _run_of(runs: list[Run], note: Note) -> Run:
    """Return the latest run of the note's process, epoch and attempt; one whose first line is missing begins here."""
    for run in reversed(runs):
        if (run.pid, run.epoch, run.attempt) == (note.pid, note.epoch, note.attempt):
            return run
    runs.append(_run(note))
    return runs[-1]


def _takeover(kill: Kill, runs: Sequence[Run]) -> Takeover:
    for run in runs:
        if run.begun_s > kill.at_s and run.pid != kill.pid:
            return Takeover(kill=kill, after_s=run.begun_s - kill.at_s, pid=run.pid, epoch=run.epoch)
    return Takeover(kill=kill, after_s=None)
