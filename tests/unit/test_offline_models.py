"""Models that need no network: recordings, extraction, and vectors by hashing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from msgspec import Struct

from callboard.agents.errors import ModelSetupError, UnexpectedPromptError
from callboard.agents.llm import recorded, typed
from callboard.agents.llm.base import Completion, Delta, Message, Prompt, ToolSpec, Usage, user
from callboard.agents.llm.embed import embed_texts
from callboard.agents.llm.extractive import Extractive
from callboard.agents.llm.price import price_of
from callboard.agents.llm.scripted import Scripted

TEXT = (
    "The harbour of Oslo was rebuilt in 1987. The harbour is now the largest harbour of the country. "
    "Some people like boats. The rebuilt harbour brought trade to Oslo."
)


def ask(text: str, **more: Any) -> Prompt:  # noqa: ANN401 - fields of a prompt
    return Prompt(messages=(user(text),), **more)


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# --- vectors


def test_equal_texts_have_equal_vectors_in_every_process() -> None:
    here = embed_texts(["harbour of Oslo"])[0]
    code = "from callboard.agents.llm.embed import embed_texts; print(embed_texts(['harbour of Oslo'])[0])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert msgspec.json.decode(done.stdout, type=list[float]) == here
    assert math.isclose(sum(value * value for value in here), 1.0)


def test_texts_that_share_words_lie_nearer() -> None:
    asked, near, far = embed_texts(["harbours in Oslo", "the harbour of Oslo", "a recipe for bread"])
    assert cosine(asked, near) > 2 * cosine(asked, far)
    assert embed_texts([""]) == [[0.0] * 256]


def test_too_few_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="8 dimensions"):
        embed_texts(["a"], dimensions=4)


# --- extraction


class Part(Struct):
    title: str
    size: Literal["small", "large"]
    count: int = 0


class Plan(Struct):
    goal: str
    parts: list[Part]
    urgent: bool


async def test_it_says_what_the_text_says_and_always_the_same() -> None:
    first = await Extractive().complete(ask(TEXT))
    assert first.text == (await Extractive().complete(ask(TEXT))).text
    assert all(sentence in TEXT for sentence in first.text.splitlines())
    assert "harbour" in first.text
    assert first.cost_usd == 0


@pytest.mark.parametrize("text", [TEXT, "", "one", "- do this\n- then that\n- a large one of 5"])
async def test_it_fills_any_schema_with_what_fits(text: str) -> None:
    prompt = ask(text, output=typed.schema(Plan))
    found: Plan = typed.parse((await Extractive().complete(prompt)).text, Plan)
    assert isinstance(found, Plan)


async def test_numbers_and_choices_come_from_the_text() -> None:
    prompt = ask("There are 12 large boxes.", output=typed.schema(Part))
    found: Part = typed.parse((await Extractive().complete(prompt)).text, Part)
    assert (found.size, found.count) == ("large", 12)


async def test_it_calls_the_tool_that_fits_once_and_answers_from_what_it_found() -> None:
    read = ToolSpec(
        name="read_file",
        description="Read a file.",
        parameters={"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    )
    other = ToolSpec(name="send_mail", description="Send mail.", parameters={"type": "object", "properties": {}})
    question = user("Read docs/harbour.md and say what stands there")
    first = await Extractive().complete(Prompt(messages=(question,), tools=(other, read)))
    (call,) = first.tool_calls
    assert (call.name, msgspec.json.decode(call.arguments)) == ("read_file", {"path": "docs/harbour.md"})
    said = Message(role="assistant", tool_calls=first.tool_calls)
    told = Message(role="tool", text=TEXT, tool_call_id=call.id, name=call.name)
    second = await Extractive().complete(Prompt(messages=(question, said, told), tools=(read,)))
    assert second.tool_calls == ()
    assert "harbour" in second.text


# --- recordings


async def test_what_was_recorded_is_played_back_without_the_model(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    recorder = recorded.Recorder(Scripted(["one", "two", "three"]), file)
    await recorder.complete(ask("a"))
    async for _ in recorder.stream(ask("a")):
        pass
    await recorder.complete(ask("b", version="v1"))
    model = recorded.load(file)
    said = [(await model.complete(ask(text))).text for text in ("a", "b", "a", "a")]
    assert said == ["one", "three", "two", "two"]
    with pytest.raises(UnexpectedPromptError, match=r"no recording of this prompt.*'c'"):
        await model.complete(ask("c"))


async def test_who_records_costs_what_its_model_costs_and_lets_go_of_its_stream(tmp_path: Path) -> None:
    left: list[str] = []

    class Open(Scripted):
        async def stream(
            self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
        ) -> AsyncIterator[Delta | Completion]:
            try:
                async for part in super().stream(prompt, timeout_s=timeout_s, key=key):
                    yield part
            finally:
                left.append("closed")

    recorder = recorded.Recorder(Open(["one two"], usd_per_token=Decimal("0.5")), tmp_path / "talk.jsonl")
    assert price_of(recorder, Usage(input_tokens=3, output_tokens=1)) == 2
    async with aclosing(recorder.stream(ask("a"))) as parts:
        assert isinstance(await anext(parts), Delta)
    assert left == ["closed"]


@pytest.mark.parametrize(("text", "said"), [(None, "cannot be read"), ("{}\n", "line 1 is no recording")])
def test_bad_recordings_are_refused_with_the_reason(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "talk.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelSetupError, match=said):
        recorded.load(file)
