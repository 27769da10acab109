"""Who is alive: the table in the module, line by line, and its promises under random schedules."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.actor.liveness import FORGET_AFTER_S, MAX_ECHO_GAP_S, Liveness

STEP_S = 0.05


class Scene:
    """An observer ``me`` on a time line of 0.05 s steps that starts at 0; ``naive`` is the rule it is compared with."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.seen = Liveness("me", now_s=0.0)
        self.naive_s: dict[str, float] = {}
        self.first_dead_s: dict[str, float] = {}
        self.first_naively_dead_s: dict[str, float] = {}

    def run(self, until_s: float, *, beats: Iterable[tuple[float, str]] = (), watch: tuple[str, ...] = ("w",)) -> None:
        """Go on to ``until_s``; ``beats`` are heard at their times."""
        waiting = sorted(beats)
        while self.now_s < until_s:
            while waiting and waiting[0][0] <= self.now_s:
                at_s, worker = waiting.pop(0)
                self.seen.heard(worker, at_s, server="s1")
                self.naive_s[worker] = at_s
            for worker in watch:
                if self.seen.is_dead(worker, self.now_s):
                    self.first_dead_s.setdefault(worker, self.now_s)
                if self.now_s - self.naive_s.get(worker, 0.0) >= 3.0:
                    self.first_naively_dead_s.setdefault(worker, self.now_s)
            self.now_s = round(self.now_s + STEP_S, 6)


def beats(worker: str, start_s: float, end_s: float, *, every_s: float = 1.0) -> list[tuple[float, str]]:
    count = int((end_s - start_s) / every_s) + 1
    return [(start_s + number * every_s, worker) for number in range(count) if start_s + number * every_s < end_s]


def observer(*, silent_s: float = 0.0, server: str = "s1") -> Liveness:
    """An observer at 10.0 with fresh echo, and ``w`` last heard ``silent_s`` before."""
    seen = Liveness("me", now_s=0.0)
    for tick in range(11):
        seen.heard("me", float(tick), server="s1")
    if silent_s < 10.0:
        seen.heard("w", 10.0 - silent_s, server=server)
    return seen


def ping(seen: Liveness, *times_s: float, answered: bool = False) -> None:
    for at_s in times_s:
        seen.pinged("w", at_s, answered=answered)


# --- the table


def test_line_1_we_are_alive_to_ourselves_whatever_is_said() -> None:
    seen = observer()
    seen.left("me", 10.0)
    seen.accused("me", 10.0)
    assert not seen.is_dead("me", 50.0)
    assert "me" in seen.live(50.0)


def test_line_2_a_goodbye_counts_at_once_even_in_an_amnesty_and_until_the_next_beat() -> None:
    seen = observer()
    seen.reconnected(10.0)
    seen.left("w", 10.0)
    assert seen.is_dead("w", 10.0)
    seen.heard("w", 11.0, server="s1")
    assert not seen.is_dead("w", 11.0)


def test_a_beat_that_was_on_its_way_does_not_undo_a_goodbye() -> None:
    seen = observer()
    seen.left("w", 10.0)
    seen.heard("w", 10.1, server="s1")
    ping(seen, 9.95, answered=True)
    assert seen.is_dead("w", 10.2)


def test_line_3_who_was_dead_before_our_link_broke_stays_dead_and_nobody_joins_it() -> None:
    seen = observer(silent_s=3.5)
    seen.heard("x", 9.2, server="s1")
    assert seen.is_dead("w", 10.0)
    seen.reconnected(10.5)
    assert seen.is_dead("w", 10.6)
    assert not seen.is_dead("x", 14.4)
    seen.heard("w", 10.7, server="s1")
    assert not seen.is_dead("w", 10.7)


def test_line_3_does_not_trust_pings_that_failed_after_our_last_echo() -> None:
    seen = observer()
    ping(seen, 10.1, 10.35, 10.6)
    assert seen.is_dead("w", 10.6)
    seen.reconnected(10.7)
    assert not seen.is_dead("w", 10.7)


def test_line_4_nobody_dies_while_our_own_beats_stay_away() -> None:
    seen = observer(silent_s=1.3)
    assert not seen.is_dead("w", 10.0 + MAX_ECHO_GAP_S)
    assert not seen.is_dead("w", 100.0)
    ping(seen, 11.7, 12.0, 12.3)
    assert not seen.is_dead("w", 12.3)


@pytest.mark.parametrize("sign", ["echo", "reconnect"])
def test_line_5_an_amnesty_of_four_seconds_follows(sign: str) -> None:
    seen = observer(silent_s=1.0)
    if sign == "reconnect":
        seen.reconnected(20.0)
    for tick in range(10):
        seen.heard("me", 20.0 + tick / 2, server="s1")
        assert seen.is_dead("w", 20.0 + tick / 2) == (tick >= 8)
    assert "w" not in seen.live(24.5)


def test_line_6_three_seconds_of_silence() -> None:
    seen = observer(silent_s=2.9)
    assert not seen.is_dead("w", 10.0)
    assert seen.live(10.0) == {"me", "w"}
    assert seen.is_dead("w", 10.2)
    assert seen.live(10.2) == {"me"}


def test_line_7_whoever_is_named_and_never_heard_gets_four_seconds_of_listening() -> None:
    scene = Scene()
    scene.run(6.0, beats=beats("me", 0.0, 6.0))
    assert scene.first_dead_s["w"] == pytest.approx(4.0, abs=0.1)


def test_line_7_whoever_is_named_later_gets_time_to_be_heard_first() -> None:
    seen = observer(silent_s=99)
    assert not seen.is_dead("w", 10.0)
    assert not seen.is_dead("w", 11.4)
    assert seen.is_dead("w", 11.5)


def test_line_8_three_unanswered_pings_over_half_a_second() -> None:
    seen = observer()
    ping(seen, 10.1, 10.35)
    assert not seen.is_dead("w", 10.4)
    ping(seen, 10.6)
    assert seen.is_dead("w", 10.6)


@pytest.mark.parametrize("times_s", [(10.1, 10.2, 10.3), (10.1, 10.7)])
def test_line_8_needs_both_the_number_and_the_time(times_s: tuple[float, ...]) -> None:
    seen = observer()
    ping(seen, *times_s)
    assert not seen.is_dead("w", 10.8)


@pytest.mark.parametrize("server", ["s2", ""])
def test_line_9_elsewhere_it_takes_two_seconds(server: str) -> None:
    seen = observer(server=server)
    seen.heard("me", 11.0, server="s1")
    seen.heard("me", 12.0, server="s1")
    ping(seen, *(10.1 + 0.25 * number for number in range(8)))
    assert not seen.is_dead("w", 11.9)
    ping(seen, 12.1)
    assert seen.is_dead("w", 12.1)


def test_an_answered_ping_tells_the_server_of_one_that_was_not_heard_yet() -> None:
    for server, is_dead in (("s1", True), ("s2", False), ("", False)):
        seen = Liveness("me", now_s=9.0)
        seen.heard("me", 9.9, server="s1")
        seen.pinged("w", 10.0, answered=True, server=server)
        for at_s in (10.1, 10.35, 10.6):
            seen.pinged("w", at_s, answered=False, via="s1")
        assert seen.is_dead("w", 10.6) is is_dead


def test_line_9_pings_through_another_server_than_the_worker_s_are_elsewhere() -> None:
    seen = observer()
    for at_s in (10.1, 10.35, 10.6):
        seen.pinged("w", at_s, answered=False, via="s2")
    assert not seen.is_dead("w", 10.6)
    # and what two servers say does not add up
    for at_s in (10.65, 10.9):
        seen.pinged("w", at_s, answered=False, via="s1")
    assert not seen.is_dead("w", 10.9)


def test_line_9_a_worker_that_beats_without_answering_pings_is_not_killed_by_pings_twice() -> None:
    scene = Scene()
    scene.run(2.0, beats=beats("me", 0.0, 2.0) + beats("w", 0.0, 2.0))
    verdicts = []
    for number in range(40):
        at_s = 2.0 + number * 0.25
        if number % 4 == 0:
            scene.seen.heard("me", at_s, server="s1")
            scene.seen.heard("w", at_s, server="s1")
        else:
            ping(scene.seen, at_s)
        verdicts.append(scene.seen.is_dead("w", at_s))
    assert sum(verdicts) <= 1
    assert not any(verdicts[4:])


def test_line_9_such_a_worker_is_believed_again_once_it_answers() -> None:
    seen = observer()
    ping(seen, 10.1)
    seen.heard("w", 10.5, server="s1")
    assert "w" in seen.suspects(10.5)
    ping(seen, 10.5, answered=True)
    ping(seen, 10.75, 11.0, 11.25)
    assert seen.is_dead("w", 11.25)


def test_line_10_an_answer_and_a_beat_both_revive() -> None:
    seen = observer()
    ping(seen, 10.1, 10.35, 10.6)
    ping(seen, 10.85, answered=True)
    assert not seen.is_dead("w", 10.9)
    assert not seen.is_dead("w", 11.5)
    ping(seen, 11.1, 11.35)
    seen.heard("w", 11.4, server="s1")
    ping(seen, 11.39)  # its "nobody there" came late: it was sent before the beat was heard
    ping(seen, 11.6, 11.85)
    assert not seen.is_dead("w", 11.9)


# --- whom to ping


def test_each_living_worker_is_watched_by_exactly_one_other_twice_a_second() -> None:
    names = ["a", "b", "c", "d"]
    watched = []
    for me in names:
        seen = Liveness(me, now_s=0.0)
        for name in names:
            seen.heard(name, 0.0, server="s1")
        (neighbour,) = seen.suspects(0.0)
        watched.append(neighbour)
        seen.pinged(neighbour, 0.0, answered=True)
        assert not seen.suspects(0.4)
        assert seen.suspects(0.5) == {neighbour}
        seen.pinged(neighbour, 0.5, answered=False)
        assert seen.suspects(0.75) == {neighbour}
    assert sorted(watched) == names


def test_a_lone_worker_pings_nobody() -> None:
    assert observer(silent_s=99).suspects(10.0) == frozenset()


def test_late_and_accused_and_named_ones_are_suspects_and_the_dead_are_not() -> None:
    seen = observer(silent_s=1.4)
    seen.heard("a", 10.0, server="s1")
    assert seen.suspects(10.0) == {"w"}  # late, and the neighbour as well
    seen.accused("a", 10.0)
    seen.watch("named", 10.0)
    assert seen.suspects(10.0) == {"a", "w", "named"}
    seen.left("a", 10.1)
    assert seen.suspects(10.1) == {"w", "named"}
    assert not seen.is_dead("another", 10.1)  # asking about somebody is naming it
    assert seen.suspects(10.1) == {"w", "named", "another"}


def test_an_accusation_alone_kills_nobody_and_ends_with_the_next_sign_of_life() -> None:
    seen = observer()
    seen.pinged("w", 10.0, answered=True)
    seen.accused("w", 10.1)
    assert not seen.is_dead("w", 10.2)
    assert seen.suspects(10.2) == {"w"}
    seen.pinged("w", 10.2, answered=True)
    assert not seen.suspects(10.3)


def test_the_dead_of_long_ago_are_forgotten() -> None:
    seen = observer()
    seen.left("w", 10.0)
    seen.heard("x", 11.0 + FORGET_AFTER_S)
    assert set(seen._peers) == {"x"}


def test_the_first_unanswered_ping_is_news_once() -> None:
    seen = observer()
    assert not seen.pinged("w", 10.0, answered=True)
    assert seen.pinged("w", 10.1, answered=False)
    assert not seen.pinged("w", 10.35, answered=False)
    seen.heard("x", 10.4, server="s1")
    seen.accused("x", 10.4)
    assert not seen.pinged("x", 10.5, answered=False)


def test_a_parent_s_report_counts_for_the_one_worker_whose_beats_named_the_process() -> None:
    seen = observer()
    for worker, pid in (("a", 7), ("b", 8), ("c", 9), ("d", 9)):
        seen.heard(worker, 10.0, server="s1", host="here", pid=pid)
    seen.ended("here", 7, 10.0)
    seen.ended("there", 8, 10.0)
    seen.ended("here", 9, 10.0)
    assert seen.live(10.0) == {"me", "w", "b", "c", "d"}
    assert {"c", "d"} <= seen.suspects(10.1)


# --- promises


gaps = st.lists(st.floats(0.05, 1.4), min_size=5, max_size=60)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Times of our echoes and of the peer's beats, no two of either further apart than 1.4 s, over the same time."""

    def times(steps: list[float]) -> list[float]:
        at_s, found = 0.0, []
        for step_s in steps:
            found.append(at_s)
            at_s += step_s
        return found

    return times(draw(gaps)), times(draw(gaps))


@given(
    timelines(), st.lists(st.tuples(st.floats(0, 80), st.sampled_from(["answer", "reconnect", "accuse"])), max_size=20)
)
def test_nobody_dies_while_its_beats_arrive(
    lines: tuple[list[float], list[float]], others: list[tuple[float, str]]
) -> None:
    ours, theirs = lines
    seen = Liveness("me", now_s=0.0)
    happenings = [(at_s, "me") for at_s in ours] + [(at_s, "w") for at_s in theirs] + others
    for at_s, what in sorted(item for item in happenings if item[0] <= theirs[-1]):
        assert not seen.is_dead("w", at_s)
        match what:
            case "answer":
                seen.pinged("w", at_s, answered=True)
            case "reconnect":
                seen.reconnected(at_s)
            case "accuse":
                seen.accused("w", at_s)
            case worker:
                seen.heard(worker, at_s, server="s1")
        assert not seen.is_dead("w", at_s)


@given(st.floats(5.0, 9.0), st.floats(0.2, 1.4), st.booleans())
def test_whoever_falls_silent_is_dead_within_four_seconds(death_s: float, every_s: float, was_heard: bool) -> None:
    scene = Scene()
    theirs = beats("w", 0.3, death_s) if was_heard else []
    scene.run(death_s + 4.1, beats=beats("me", 0.0, death_s + 5.0, every_s=every_s) + theirs)
    last_s = theirs[-1][0] if theirs else 0.0
    assert last_s + 2.9 <= scene.first_dead_s["w"] <= death_s + 4.0


outages = st.tuples(st.floats(5.0, 8.0), st.floats(0.05, 12.0), st.floats(0.0, 3.5), st.floats(0.0, 0.99))


def outage(start_s: float, length_s: float, *, back_s: float, phase_s: float) -> Scene:
    """The server is away; we are back when it is, ``w`` comes back ``back_s`` later. Both live all the time."""
    scene = Scene()
    end_s = start_s + length_s
    before = beats("me", 0.0, start_s) + beats("w", phase_s, start_s)
    after = beats("me", end_s, end_s + 12.0) + beats("w", end_s + back_s, end_s + 12.0)
    scene.run(end_s, beats=before)
    scene.seen.reconnected(scene.now_s)
    scene.run(end_s + 11.0, beats=after)
    return scene


@given(outages)
def test_a_server_outage_is_nobody_s_death(case: tuple[float, float, float, float]) -> None:
    start_s, length_s, back_s, phase_s = case
    assert not outage(start_s, length_s, back_s=back_s, phase_s=phase_s).first_dead_s


@given(outages)
def test_an_outage_that_only_the_echo_shows_is_nobody_s_death(case: tuple[float, float, float, float]) -> None:
    start_s, length_s, back_s, phase_s = case
    end_s = start_s + max(length_s, 2.7)  # shorter ones leave no gap of 1.6 s in every case
    scene = Scene()
    before = beats("me", 0.0, start_s) + beats("w", phase_s, start_s)
    after = beats("me", end_s, end_s + 12.0) + beats("w", end_s + back_s, end_s + 12.0)
    scene.run(end_s + 11.0, beats=before + after)
    assert not scene.first_dead_s


def test_the_naive_rule_takes_an_outage_for_a_death() -> None:
    scene = outage(6.0, 4.0, back_s=0.5, phase_s=0.3)
    assert scene.first_naively_dead_s
    assert not scene.first_dead_s
