"""The table in the docs is the one that the tests hold the sandboxes to."""

from __future__ import annotations

from pathlib import Path

from tests.support.escapes import ESCAPES, SANDBOXES, table, wanted

PAGE = Path(__file__).parents[2] / "docs" / "sandboxes.md"


def test_the_docs_show_the_table() -> None:
    assert "\n".join(table(wanted())) in PAGE.read_text("utf-8")


def test_every_cell_says_something() -> None:
    assert all(len(each.wants) == len(SANDBOXES) and set(each.wants) <= set("pcne") for each in ESCAPES)
    assert len({each.name for each in ESCAPES}) == len(ESCAPES)


def test_what_is_expected_is_no_wish() -> None:
    """Negative control: an escape that is through is not taken for one that was held."""
    held = next(each for each in ESCAPES if each.wants == "ppp")
    assert held.is_as_wanted("docker", "prevented")
    assert not held.is_as_wanted("docker", "contained")
    assert not held.is_as_wanted("docker", "NOT PREVENTED")
