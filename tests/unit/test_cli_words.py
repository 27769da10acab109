"""What the command line says to people: no word twice, no line without words, nothing beside what is to be done."""

from __future__ import annotations

import pytest

from callboard.agents.llm.tokens import Chunk, TokensEnd
from callboard.cli.output import ended
from callboard.cli.rerun import _actors
from callboard.cli.watch import Screen
from callboard.runtime.errors import ModuleLoadError


@pytest.mark.parametrize(
    ("status", "why", "said"),
    [
        ("cancelled", "cancelled by request", "cancelled by request"),
        ("cancelled", "wrong bed", "cancelled: wrong bed"),
        ("done", "", "done"),
    ],
)
def test_how_a_run_ended_is_said_once(status: str, why: str, said: str) -> None:
    assert ended(status, why) == said


def test_an_answer_without_words_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for round_ in range(3):
        screen.chunk(Chunk(run="r", agent="estimator", step=str(round_), attempt=1, number=0, end=TokensEnd()))
    screen.chunk(Chunk(run="r", agent="estimator", step="3", attempt=1, number=0, text="two "))
    screen.chunk(Chunk(run="r", agent="estimator", step="3", attempt=1, number=1, text="tins", end=TokensEnd()))
    screen.chunk(Chunk(run="r", agent="estimator", step="4", attempt=1, number=0, end=TokensEnd(error="model_auth")))
    said = capsys.readouterr()
    assert said.out == "[estimator] two tins\n[estimator] \n"
    assert said.err == " (model_auth)\n"


def test_a_replay_without_code_says_only_what_to_do() -> None:
    with pytest.raises(ModuleLoadError) as caught:
        _actors(())
    assert str(caught.value) == "say where today's code is: --module FILE, a folder or a module"
