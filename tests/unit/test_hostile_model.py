"""What a hostile provider answers costs neither time nor memory without end, and gives no budget anything back."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from callboard.agents import window
from callboard.agents.errors import ContextTooLongError, ModelOutputError
from callboard.agents.llm import chat, estimate, fault, typed
from callboard.agents.llm.base import Completion, Message, Prompt, ToolCall, ToolSpec, user
from callboard.agents.llm.extractive import Extractive
from callboard.agents.llm.scope import MOST_TOKENS, MOST_USD, Amount, check_amount, possible
from callboard.agents.tools.builtin.page import words
from callboard.cli.output import one_line, visible
from callboard.runtime.errors import InputError

ASK = Prompt(messages=(user("hello"),))
KEY = "canary-key-0123456789-0123456789"


def answered(choice: str, more: str = "") -> Completion:
    data = f'{{"choices":[{{"message":{choice},"finish_reason":"stop"}}]{more}}}'.encode()
    return chat.read(msgspec.json.decode(data, type=chat.Answer), ASK, provider="near", model="small")


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":-5000000,"completion_tokens":2}',
        '{"prompt_tokens":5,"completion_tokens":-5000000}',
        '{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":-9}}',
        '{"prompt_tokens":1000000000000000000000000000000}',
        '{"prompt_tokens":5,"completion_tokens":100000001}',
        '{"completion_tokens":5}',
        "null",
    ],
)
def test_what_cannot_have_been_used_is_counted_here(usage: str) -> None:
    found = answered('{"content":"hello there"}', f',"usage":{usage}')
    assert found.is_estimated
    assert 0 < found.usage.tokens < 100
    assert msgspec.json.decode(msgspec.json.encode(found), type=Completion) == found


def fragments(*calls: str) -> chat.Answer:
    return msgspec.json.decode(f'{{"choices":[{{"delta":{{"tool_calls":[{",".join(calls)}]}}}}]}}', type=chat.Answer)


@pytest.mark.parametrize("form", ['{{"index":{n}}}', '{{"index":0,"id":"a{n}"}}', '{{"function":{{"name":"t"}}}}'])
def test_calls_without_number_are_refused_early(form: str) -> None:
    gathering = chat.Gathering(ASK, provider="near", model="small")
    with pytest.raises(ModelOutputError, match="more than 1000 calls"):
        gathering.add(fragments(*(form.format(n=n) for n in range(200_000))))
    assert len(gathering.completion().tool_calls) == chat.MAX_CALLS


def test_each_call_has_an_id_of_its_own() -> None:
    gathering = chat.Gathering(ASK, provider="near", model="small")
    ids = ("x", "x", "", "call_2", "x_1", "y" * 5000)
    calls = (msgspec.json.encode({"id": id_, "function": {"name": "t", "arguments": "{}"}}).decode() for id_ in ids)
    gathering.add(fragments(*calls))
    found = [call.id for call in gathering.completion().tool_calls]
    assert len(set(found)) == len(ids)
    assert found[0] == "x"
    assert max(map(len, found)) <= 100


def test_a_model_cannot_call_itself_what_it_wants() -> None:
    data = msgspec.json.encode({"model": "a\x1b[2J\n" + "b" * 10_000, "choices": [{"message": {"content": "x"}}]})
    found = chat.read(msgspec.json.decode(data, type=chat.Answer), ASK, provider="near", model="small")
    assert found.model.startswith("near/a[2Jbbb")
    assert found.model.isprintable()
    assert len(found.model) < 300


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("-1", 0.0),
        ("nan", None),
        ("inf", 86_400.0),
        ("31536000", 86_400.0),
        ("9" * 5000, 86_400.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 99 Jan 2024 99:99:99", None),
        ("soon", None),
    ],
)
def test_a_pause_is_a_sane_one_or_none(said: str, seconds: float | None) -> None:
    assert fault.retry_after({"retry-after": said}, now=datetime(2026, 11, 21, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("depth", [500, 990, 10_000, 1_000_000])
def test_nesting_is_no_way_out(depth: int) -> None:
    for form in (b'{"error":' + b"[" * depth + b"1" + b"]" * depth + b"}", b'{"error":' + b'{"a":' * depth):
        assert len(fault.said(form).text) <= fault.MAX_SAID_CHARS


def test_no_piece_of_a_key_is_left_where_a_text_is_cut() -> None:
    for before in range(1100, 1300, 7):
        said = fault.said(b"x " * (before // 2) + KEY.encode() * 30, secrets=[KEY])
        assert "canary" not in said.text
    said = fault.said(KEY.encode() * 60, secrets=[KEY])
    assert "canary" not in said.text


@pytest.mark.parametrize(
    "wrong",
    [
        Amount(tokens=-1),
        Amount(usd=Decimal("-0.01")),
        Amount(usd=Decimal("NaN")),
        Amount(usd=Decimal("Infinity")),
        Amount(usd=Decimal("1e999999")),
        Amount(seconds=-1.0),
        Amount(seconds=float("nan")),
        Amount(seconds=1e308),
        Amount(tokens=10**30),
    ],
)
def test_amounts_that_cannot_be_are_refused_and_put_right(wrong: Amount) -> None:
    with pytest.raises(InputError, match="nothing that a call can"):
        check_amount(wrong)
    if not math.isnan(wrong.seconds):
        check_amount(possible(wrong))
    assert possible(Amount(tokens=10**30, usd=Decimal("1e999999"))).tokens == MOST_TOKENS
    assert check_amount(Amount(usd=MOST_USD)).usd == MOST_USD


# Each of these took html.parser longer than ten seconds, or for ever: its time grew with the square of the page.
@pytest.mark.parametrize(
    "page",
    [
        "<!--" * 500_000,
        "<!x" * 600_000,
        "<a " * 600_000,
        "<a x='" * 300_000,
        "</" * 1_000_000,
        "<?" * 1_000_000,
        "<![CDATA[" * 200_000,
        "<" * 2_000_000,
        "<script>" * 250_000,
        "<svg></svg" * 200_000,
        "<a '>\"" * 300_000,
        "<a " + "href " * 400_000 + ">",
        "&#" + "9" * 100_000,
    ],
    ids=lambda page: page[:10],
)
@pytest.mark.timeout(20)
def test_a_page_takes_no_longer_than_it_is_long(page: str) -> None:
    assert len(words(page)) <= len(page)


def test_a_page_s_words_are_those_that_are_shown() -> None:
    page = (
        "<!doctype html><HEAD><title>no</title></HEAD><!-- <p>no --><p title='a > b'>One &amp; 1 < 2</P><STYLE>no{}"
        "</style><script>if (a</b) no()</SCRIPT ><a HREF='https://e.org/?a=1&amp;b=2'>link</a><a href='javascript:no'>x"
    )
    assert words(page).splitlines() == ["One & 1 < 2", "<https://e.org/?a=1&b=2> linkx"]


def test_a_text_cannot_look_like_another_to_who_decides() -> None:
    # turned around, hidden, or on a line of its own
    assert (
        visible("pay \u202e05\u202c to \u2066x\U000e0041\x1b[2J") == "pay \\u202e05\\u202c to \\u2066x\\ue0041\\x1b[2J"
    )
    assert one_line("Refund\nhash:       0000\x85risk: low") == "Refund hash: 0000 risk: low"
    assert visible("naïve 日本 👩\u200d🚀") == "naïve 日本 👩\u200d🚀"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{" * 100_000, "\ud800", "", "\x00"])
@pytest.mark.parametrize("kind", [list[int], dict[str, int]])
def test_an_answer_that_cannot_be_read_is_told_so(text: str, kind: object) -> None:
    with pytest.raises(ModelOutputError):
        typed.parse(text, kind, model="m")


async def test_the_extractive_model_answers_whatever_it_is_asked() -> None:
    tool = ToolSpec(name="t", description="word", parameters={})
    for prompt in (
        Prompt(messages=()),
        Prompt(messages=(Message(role="tool", text="x"),)),
        Prompt(messages=(user("word " * 100),), tools=(tool,)),
        Prompt(messages=(user("word"),), output={"$ref": "#"}),
    ):
        assert (await Extractive().complete(prompt)).finish in {"stop", "tool_calls"}


def test_results_that_together_are_too_much_are_shown_by_their_beginnings() -> None:
    calls = tuple(ToolCall(id=f"c{n}", name="t") for n in range(64))
    told = tuple(Message(role="tool", text="x" * 32_000, tool_call_id=call.id, name="t") for call in calls)
    shown = window.Window(task=(user("go"), Message(role="assistant", tool_calls=calls), *told))
    found = window.pack(shown, limit_tokens=100_000, count=lambda said: sum(map(estimate.message_tokens, said)))
    assert len(found) == 66
    assert {len(message.text) > 2000 for message in found[2:]} == {True}
    with pytest.raises(ContextTooLongError):
        window.pack(shown, limit_tokens=100, count=lambda said: sum(map(estimate.message_tokens, said)))
