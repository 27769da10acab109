"""The account of a turn that was taken over: what its notes say, and that the judge cannot be pleased with anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard.agents.dossier.judge import Kill, Verdict, judge
from callboard.agents.dossier.note import Note, Notes, What
from callboard.agents.dossier.scene import Scene
from callboard.cli.takeover_view import render

A, B = 11, 22
STEPS = 4
KILL = Kill(pid=A, at_s=10.0, step=2)


def line(what: What, number: int = 0, *, pid: int = A, at_s: float = 1.0, key: str = "") -> Note:
    epoch = 1 if pid == A else 2
    key = key or (f"key-{number}" if what == "filed" else "")
    return Note(what=what, at_s=at_s, pid=pid, epoch=epoch, number=number, key=key)


def whole(number: int, *, pid: int) -> list[Note]:
    """Return what a step leaves that ran to its end."""
    return [line("begin", number, pid=pid), line("filed", number, pid=pid), line("have", number, pid=pid)]


def kept() -> list[Note]:
    """Return the notes of a turn that was cut off in its second step and went on as promised."""
    return [
        line("turn"),
        *whole(1, pid=A),
        line("begin", 2),
        line("turn", pid=B, at_s=10.9),
        line("have", 1, pid=B),
        *whole(2, pid=B),
        *whole(3, pid=B),
        *whole(4, pid=B),
        line("finished", pid=B),
        line("answered", 1, pid=B),
        line("answered", 2, pid=B),
    ]


def of(notes: list[Note], *, kills: tuple[Kill, ...] = (KILL,), wanted: int = 1) -> Verdict:
    return judge(notes, kills, steps=STEPS, questions=2, kills_wanted=wanted)


def test_a_turn_that_was_taken_over_as_promised_has_no_problem() -> None:
    verdict = of(kept())
    assert verdict.problems == []
    assert verdict.ran == {A: 1, B: 3}
    assert (verdict.replayed, verdict.again, verdict.repeated, verdict.doubled) == (1, [2], [], [])
    assert verdict.takeovers[0].after_s == pytest.approx(0.9)
    assert (verdict.takeovers[0].pid, verdict.takeovers[0].epoch) == (B, 2)


def test_a_recorded_step_that_is_called_again_is_seen() -> None:
    notes = kept()
    notes.insert(notes.index(line("have", 1, pid=B)), line("begin", 1, pid=B))
    verdict = of(notes)
    assert verdict.repeated == [1]
    assert verdict.problems == ["recorded steps repeated: 1"]


def test_an_effect_under_another_key_in_the_second_run_is_seen() -> None:
    notes = kept()
    notes.insert(5, line("filed", 2, key="one"))
    verdict = of(notes)
    assert verdict.repeated == []
    assert verdict.problems == ["effects had twice: 2"]


@pytest.mark.parametrize("what", ["filed", "have"])
def test_a_step_without_effect_or_record_is_seen(what: What) -> None:
    notes = [note for note in kept() if (note.what, note.number) != (what, 3)]
    assert of(notes).problems == ["steps without effect or record: 3"]


def test_a_worker_that_goes_on_beside_its_successor_is_seen() -> None:
    notes = kept()
    notes.insert(8, line("begin", 2))
    assert "steps run by two at once: 2" in of(notes).problems


@pytest.mark.parametrize(
    ("handled", "order"),
    [((2, 1), "turn, 2, 1"), ((1,), "turn, 1"), ((1, 1, 2), "turn, 1, 1, 2")],
    ids=["swapped", "lost", "twice"],
)
def test_questions_out_of_order_are_seen(handled: tuple[int, ...], order: str) -> None:
    notes = [note for note in kept() if note.what != "answered"]
    notes += [line("answered", number, pid=B) for number in handled]
    assert of(notes).problems == [f"mail handled in the order {order}"]


def test_a_question_before_the_turns_end_is_seen() -> None:
    notes = kept()
    answered = next(note for note in notes if note.what == "answered")
    notes.remove(answered)
    notes.insert(4, answered)
    assert of(notes).problems == ["mail handled in the order 1, turn, 2"]


def test_a_kill_that_nobody_took_over_from_or_that_never_came_is_a_problem() -> None:
    alone = [line("turn"), *(note for number in range(1, 5) for note in whole(number, pid=A)), line("finished")]
    alone += [line("answered", 1), line("answered", 2)]
    assert of(alone, kills=()).problems[0].startswith("0 of 1 kills came about")
    assert "kills that nobody took over from: 2" in of(alone).problems


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.jsonl")
    assert notes.more() == []
    notes.write(line("turn"))
    assert notes.more() == [line("turn")]
    with notes.path.open("ab") as file:
        file.write(b'\n{"what":"beg')
    assert notes.more() == []
    notes.write(line("begin", 1))
    assert notes.more() == [line("begin", 1)]
    assert Notes(notes.path).more() == [line("turn"), line("begin", 1)]


def test_the_picture_tells_who_ran_what_and_how_long_a_worker_is_dead() -> None:
    scene = Scene(total=7, pace_s=1.5, by={1: "A", 2: "A"}, step=3, runner="A", owner="A", epoch=4, waiting=3)
    assert render(scene, now_s=0.0).plain == (
        "  AAa.. ..\n  2/7 steps  A runs step 3  owner A, epoch 4  3 mails wait  0:07 left"
    )
    scene.killed_at_s = 20.0
    assert render(scene, now_s=20.7).plain.startswith("  AAx.. ..\n  2/7 steps  A is dead for 0.7 s")
