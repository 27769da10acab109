"""The rehearsal's own parts: how pods are replaced, how probes are read, and that its verdict can fail."""

from __future__ import annotations

from msgspec import structs

from tests.chaos.checker import Evidence, check
from tests.chaos.journal import Event
from tests.chaos.turns import Recorded, TurnVerdict, repeated_steps
from tests.deploy.rehearsal import Pause, Report, longest_pause, refusals
from tests.deploy.rollout import Moves, Standing, Threshold, next_moves, share


def _pod(name: str, *, is_new: bool = False, is_ready: bool = True, since_s: float = 0.0) -> Standing:
    return Standing(name=name, is_new=is_new, is_ready=is_ready, since_s=since_s)


def _moves(*pods: Standing, wanted: int = 2) -> Moves:
    return next_moves(pods, wanted=wanted, surge="25%", unavailable=0)


def test_an_old_pod_goes_only_when_a_new_one_is_ready() -> None:
    old = (_pod("a"), _pod("b"))
    assert _moves(*old) == Moves(starts=1)
    assert _moves(*old, _pod("c", is_new=True, is_ready=False)) == Moves()
    assert _moves(*old, _pod("c", is_new=True)).ends == ("a",)
    assert _moves(_pod("b"), _pod("c", is_new=True)) == Moves(starts=1)
    assert _moves(_pod("c", is_new=True), _pod("d", is_new=True)) == Moves()


def test_a_scale_in_ends_what_is_not_ready_and_then_the_youngest() -> None:
    pods = [_pod(name, is_new=True, since_s=since_s) for name, since_s in (("a", 1.0), ("b", 3.0), ("c", 2.0))]
    assert _moves(*pods, wanted=2).ends == ("b",)
    assert _moves(*pods, _pod("d", is_new=True, is_ready=False), wanted=2).ends == ("d", "b")


def test_shares_are_rounded_as_kubernetes_does() -> None:
    assert (share("25%", 2, rounds_up=True), share("25%", 2, rounds_up=False), share(3, 2, rounds_up=True)) == (1, 0, 3)


def test_a_probe_fails_after_so_many_failures_in_a_row() -> None:
    probe = Threshold(2)
    said = [probe.take(is_success=each) for each in (True, False, True, False, False, False)]
    assert said == [True, False, False, False, True, False]
    assert probe.is_up is False


def _event(kind: str, at_s: float, *, pid: int = 1, step: int = -1, task: str = "turn-0") -> Event:
    return Event(kind=kind, pid=pid, at_s=at_s, task=task, n=0, step=step)  # type: ignore[arg-type]  # a kind


LINES = [_event("start", 0), _event("step", 0, step=0), _event("stepped", 1, step=0), _event("end", 1.1)]


def test_a_doubled_line_of_a_recorded_step_is_noticed() -> None:
    recorded = {(0, 0): Recorded(1, 1.05)}
    assert repeated_steps(LINES, recorded) == []
    assert repeated_steps([*LINES, _event("step", 9, pid=2, step=0)], recorded) == [(0, 0)]


def test_a_pause_is_what_lies_between_lines_and_no_step_that_runs() -> None:
    again = _event("step", 8.0, pid=2, step=1)
    lines = [*LINES[:3], _event("step", 1.5, step=1), again]
    pause = longest_pause(lines, {"k0": [0]}, {0: 0.0})
    assert (pause.length_s, pause.at_s) == (6.5, 1.5)
    assert longest_pause(lines, {"k0": [0]}, {0: 7.0}).length_s == 1.0


REFUSED = '{"event": "callboard.v1.bus.refused", "subject": "a.b", "level": "error"}\n'


def test_a_report_names_whatever_went_wrong() -> None:
    fine = TurnVerdict(
        lost=[], doubled=[], disordered=[], overlaps=[], broken_off=[], crashed=[], repeated=[],
        starts=2, reruns=1, steps=2, steps_again=1,
    )  # fmt: skip
    task = "hello/0"
    own, none = frozenset({task}), frozenset[str]()
    evidence = Evidence(acked=own, offered=own, effects={task: 1}, statuses={}, dead=none, pending=none, events=())
    good = Report(
        turns=2, tasks=1, turn_verdict=fine, task_verdict=check(evidence), caught={"the scale-in": 1},
        forced=[], too_few=[], refused=[], turn_pause=Pause(), began_s=0.0, task_wait_s=0.0,
    )  # fmt: skip
    assert good.problems == []
    assert refusals("agents-1", REFUSED) == []
    spoiled = [
        structs.replace(good, turn_verdict=structs.replace(fine, repeated=[(0, 0)])),
        structs.replace(good, turn_verdict=structs.replace(fine, lost=[1])),
        structs.replace(good, task_verdict=check(structs.replace(evidence, effects={task: 2}))),
        structs.replace(good, task_verdict=check(structs.replace(evidence, effects={}))),
        structs.replace(good, forced=["agents-1, its grace is over"]),
        structs.replace(good, too_few=["agents: 1 of 2"]),
        structs.replace(good, refused=refusals("agents-1", 9 * REFUSED)),
        structs.replace(good, caught={"the scale-in": 0}),
    ]
    assert [len(each.problems) for each in spoiled] == [1] * len(spoiled)
