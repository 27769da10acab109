"""What is said of a cluster that answers nothing."""

from __future__ import annotations

import pytest

from callboard.runtime.bus.muster import Present, State, explain, has_majority, look


def servers(*states: State) -> list[Present]:
    return [
        Present(url=f"nats://h:{number}", name=f"cb{number}", state=state) for number, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(
    ("states", "is_enough"),
    [
        (("answers", "answers", "answers"), True),
        (("answers", "answers", "away"), True),
        (("answers", "away", "silent"), False),
        (("answers", "answers", "away", "away"), False),
        (("answers", "answers", "answers", "away", "away"), True),
    ],
    ids=range(5),
)
def test_more_than_half_must_answer(states: tuple[State, ...], is_enough: bool) -> None:
    assert has_majority(servers(*states)) is is_enough


def test_servers_that_are_away_are_named_with_what_to_do() -> None:
    assert explain(servers("answers", "away", "silent")) == (
        "the cluster has lost its majority: 1 of 3 servers answer (cb1 at nats://h:1), 2 are needed. cb2 at nats://h:2 "
        "is away; cb3 at nats://h:3 takes connections and says nothing (stopped or overloaded). Start those again with "
        "the data they had; until then nothing can be stored, and nothing that was acknowledged is lost"
    )


def test_a_majority_without_a_leader_is_an_election_or_a_cut_route() -> None:
    text = explain(servers("answers", "answers", "away"))
    assert text.startswith("2 of 3 servers answer (cb3 at nats://h:3 is away), and they have no leader: an election")


async def test_an_address_without_a_listener_is_away_under_its_known_name() -> None:
    url = "nats://127.0.0.1:1"
    assert await look([url], names={url: "cb7"}) == [Present(url=url, name="cb7", state="away")]
    assert await look([url]) == [Present(url=url, name=url, state="away")]
