"""Misspelt names: what is near them, and what is said of it."""

from __future__ import annotations

from callboard.runtime.near import hint, near


def test_what_is_much_like_a_name_is_offered_and_nothing_else() -> None:
    known = ["greeter", "writer", "registry"]
    assert hint("greter", known) == "; did you mean greeter?"
    assert hint("writr", known) == "; did you mean writer?"
    assert hint("greter", known, before="<", after="/{x}") == "; did you mean <greeter/{x}?"
    assert hint("zebra", known) == ""


def test_a_name_that_exists_is_not_misspelt() -> None:
    assert hint("greeter", ["greeter", "greeters"]) == ""
    assert near("greeter", ["greeters", "greeter"]) == ["greeter", "greeters"]
