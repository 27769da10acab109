"""The scripted model says exactly what it was told to, and nothing unexpected."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from callboard.agents.errors import ModelRateError, ModelSetupError, ModelTransientError, UnexpectedPromptError
from callboard.agents.llm.base import Completion, Delta, Message, Model, Prompt, ToolCall, user
from callboard.agents.llm.scripted import Answer, Say, Scripted, load
from tests.support.stage import HastyClock


def ask(text: str, *before: Message) -> Prompt:
    return Prompt(messages=(*before, user(text)))


async def parts(model: Model, prompt: Prompt) -> list[Delta | Completion]:
    return [part async for part in model.stream(prompt)]


async def test_answers_come_in_their_order_and_are_counted() -> None:
    model = Scripted(["one", ToolCall(id="", name="look", arguments='{"at": 1}'), Say(text="three", finish="length")])
    first, second, third = [await model.complete(ask(text)) for text in ("a", "b", "c")]
    assert (first.text, first.finish, first.cost_usd, first.is_estimated) == ("one", "stop", Decimal(0), True)
    assert (second.tool_calls[0].name, second.finish) == ("look", "tool_calls")
    assert second.tool_calls[0].id
    assert (third.text, third.finish) == ("three", "length")
    assert model.calls == 3
    assert [prompt.messages[-1].text for prompt in model.prompts] == ["a", "b", "c"]
    model.assert_used()


async def test_a_prompt_beyond_the_script_is_an_error_that_shows_it() -> None:
    model = Scripted(["one"])
    await model.complete(ask("a"))
    with pytest.raises(UnexpectedPromptError, match=r"has 1 answers and this would be number 2.*'what else'"):
        await model.complete(ask("what else"))


async def test_a_prompt_that_another_answer_was_meant_for_is_an_error() -> None:
    model = Scripted([Say(text="sum", when="add")])
    with pytest.raises(UnexpectedPromptError, match="for prompts with 'add'"):
        await model.complete(ask("multiply"))


async def test_answers_that_are_left_are_named() -> None:
    model = Scripted(["one", "two"])
    await model.complete(ask("a"))
    with pytest.raises(AssertionError, match=r"1 answers .* next 'two'"):
        model.assert_used()


async def test_rules_fit_in_any_order_and_any_number_of_times() -> None:
    model = Scripted([Say(text="hi", when="^hello", always=True), "other"])
    said = [(await model.complete(ask(text))).text for text in ("hello you", "what", "hello me")]
    assert said == ["hi", "other", "hi"]


async def test_a_rule_can_look_at_the_whole_conversation() -> None:
    model = Scripted([Say(text="yes", when="secret", anywhere=True, always=True)])
    assert (await model.complete(ask("so?", user("the secret")))).text == "yes"


async def test_errors_delays_and_cuts_follow_the_script() -> None:
    clock = HastyClock()
    script: list[Answer] = [
        Say(error="model_rate", retry_after_s=7),
        Say(text="a b c", delay_s=5, gap_s=1),
        Say(text="a b c", cut_after=2),
        Say(text="a", cut_after=1),
        ModelTransientError("down"),
    ]
    model = Scripted(script, clock=clock)
    with pytest.raises(ModelRateError) as caught:
        await model.complete(ask("x"))
    assert caught.value.retry_after_s == 7
    got = await parts(model, ask("x"))
    assert [part.text for part in got] == ["a ", "b ", "c", "a b c"]
    assert clock.slept == [5, 1, 1]
    for _ in range(3):
        with pytest.raises(ModelTransientError):
            await parts(model, ask("x"))


async def test_a_function_answers_by_the_prompt() -> None:
    model = Scripted([lambda prompt: prompt.messages[-1].text.upper()])
    assert (await model.complete(ask("loud"))).text == "LOUD"


def test_a_rule_that_is_no_expression_is_refused_at_once() -> None:
    with pytest.raises(ModelSetupError, match=r"'\(' .* no regular expression"):
        Scripted([Say(text="a", when="(")])


async def test_a_file_answers_by_the_place_in_the_conversation_and_notes_its_calls(tmp_path: Path) -> None:
    script = {"answers": [{"text": "first"}, {"text": "second"}], "calls": "calls.jsonl"}
    file = tmp_path / "script.json"
    file.write_bytes(msgspec.json.encode(script))
    later = ask("b", user("a"), Message(role="assistant", text="first"))
    # two processes, and the first is asked twice
    assert (await load(file).complete(ask("a"))).text == "first"
    model = load(file)
    assert [(await model.complete(prompt)).text for prompt in (ask("a"), later)] == ["first", "second"]
    lines = [msgspec.json.decode(line) for line in (tmp_path / "calls.jsonl").read_bytes().splitlines()]
    assert [line["prompt"] for line in lines] == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("nonsense", "is no script"),
        ('{"answers": [{"txt": "a"}]}', "txt"),
        ('{"answers": [{"error": "model_tired"}]}', "model_tired"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "script.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelSetupError, match=said):
        load(file)
