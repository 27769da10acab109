"""Each way out is really tried in each sandbox that is here, and without one, where it has to succeed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from callboard.agents.sandbox.choose import choose
from tests.support.escapes import ESCAPES, Escape
from tests.support.trial import attempt, got_through, missing, stage


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda each: each.name)
@pytest.mark.parametrize("name", ["subprocess", "bubblewrap"])
async def test_a_way_out_ends_as_the_table_says(name: str, escape: Escape, tmp_path: Path) -> None:
    sandbox = choose(name)
    if reason := await missing(sandbox):
        pytest.skip(f"SKIP sandbox {name}: {reason}")
    with stage(tmp_path) as found:
        outcome, ran = await attempt(sandbox, escape, found, python=sys.executable)
    assert escape.is_as_wanted(name, outcome), ran


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda each: each.name)
async def test_without_a_sandbox_it_gets_out(escape: Escape, tmp_path: Path) -> None:
    """Negative control: what fails here too would prove nothing inside."""
    if escape.needs_root and os.geteuid() != 0:
        pytest.skip("needs root")
    with stage(tmp_path) as found:
        is_through, said = await got_through(escape, found)
    if not is_through and escape.may_lack:
        pytest.skip(f"no {escape.may_lack} here: {said}")
    assert is_through, said
