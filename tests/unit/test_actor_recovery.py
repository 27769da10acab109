"""What becomes of a turn that another host had begun: the decision, as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.recovery import Begun, Choice, Recovery, decide
from callboard.runtime.errors import ConfigError


def begun(*, steps: int = 3, deaths: int = 1) -> Begun:
    names = tuple(f"step {n}" for n in range(steps))
    return Begun(
        address=Address("a", "k"), seq=1, type=None, steps=names, from_worker="w", cause="death", deaths=deaths
    )


def always(choice: Choice) -> Recovery:
    return lambda _: choice


@pytest.mark.parametrize(
    ("recovery", "deaths", "steps", "was_restarted", "choice"),
    [
        ("resume", 1, 3, False, "resume"),
        ("restart", 1, 3, False, "restart"),
        (always("restart"), 1, 3, False, "restart"),
        (always("bury"), 1, 3, False, "bury"),
        ("resume", 5, 3, False, "resume"),
        # over the limit: begun anew once, unless that was tried or cannot help
        ("resume", 6, 3, False, "restart"),
        (always("resume"), 6, 3, False, "restart"),
        ("resume", 6, 3, True, "bury"),
        ("resume", 6, 0, False, "bury"),
        ("restart", 6, 3, False, "bury"),
    ],
)
def test_the_choice(recovery: Recovery, deaths: int, steps: int, was_restarted: bool, choice: Choice) -> None:
    found = decide(recovery, begun(steps=steps, deaths=deaths), crash_limit=5, was_restarted=was_restarted)
    assert found == choice


def test_a_function_that_fails_or_says_nonsense_is_no_reason_to_pay_again() -> None:
    def broken(_: Begun) -> Choice:
        raise ValueError

    def silly(_: Begun) -> Choice:
        return "dance"  # type: ignore[return-value]

    for function in (broken, silly):
        assert decide(function, begun(), crash_limit=5, was_restarted=False) == "resume"


@given(
    recovery=st.sampled_from(["resume", "restart"]),
    limit=st.integers(1, 5),
    steps=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_a_turn_that_never_gets_on_ends_as_a_dead_letter(recovery: Recovery, limit: int, steps: list[int]) -> None:
    was_restarted, choices = False, []
    for deaths, count in enumerate(steps, start=1):
        choice = decide(recovery, begun(steps=count, deaths=deaths), crash_limit=limit, was_restarted=was_restarted)
        choices.append(choice)
        was_restarted |= choice == "restart"
    assert "bury" in choices[: limit + 2]


def test_a_class_says_it_and_what_it_cannot_be_is_refused() -> None:
    def choose(_: Begun) -> Choice:
        return "restart"

    class Chosen(Actor, name="chosen", recovery=choose):
        @on
        def hear(self, m: int) -> None: ...

    class Heir(Chosen, name="heir"):
        pass

    assert Heir.actor_options.recovery is choose
    with pytest.raises(ConfigError, match="recovery is 'dance'"):

        class Wrong(Actor, name="wrong", recovery="dance"):  # type: ignore[arg-type]
            @on
            def hear(self, m: int) -> None: ...
