"""A model that needs no key and no network: it answers with what the prompt itself says. Deterministic.

It is no language model. It picks the sentences that say most, takes the steps of a plan from the text, fills a JSON
Schema with what it finds and calls a tool whose description shares words with the task. It is there so that agents,
flows and demos run at once on any machine, and says so in its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from callboard.agents.llm import estimate, usage
from callboard.agents.llm.base import Completion, Delta, Message, ModelFacts, Prompt, ToolCall, ToolSpec, Usage
from callboard.agents.llm.embed import embed_texts
from callboard.agents.settings import AgentSettings

NAME = "extractive"
_SENTENCES = 5
_ITEMS = 8
_SENTENCE_CHARS = 400
_DEPTH = 8
_SPLIT = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|\n{2,}|\n(?=\s*(?:[-*•]|\d+[.)])\s)")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
# Marks around data in prompts, which are no part of what is said; see ``callboard.agents.window.fence``.
_MARK = re.compile(r"</?data-[0-9a-f]{16}[^>\n]*>\n?")
_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"[\"'`“]([^\"'`“”\n]{1,200})[\"'`”]")
_PATH = re.compile(r"(?<![\w/])(?:[\w.-]+/)*[\w-]+\.[A-Za-z]\w{0,7}\b|(?<![\w/])(?:[\w.-]+/)+[\w.-]*")
_URL = re.compile(r"https?://[^\s\"'<>)]+")
_DULL_WORDS = (
    "the and for that this with from are was were have has had not but you your they their them its our all any can "
    "will would should could into over than then there here what which who how when where why each more most some such "
    "only also about between please use given task write make give answer question text following"
)
_DULL = frozenset(_DULL_WORDS.split())


class Extractive:
    """Answers by extraction. Implements ``Model``; it keeps nothing and may be shared."""

    @property
    def name(self) -> str:
        """``extractive``."""
        return NAME

    @property
    def facts(self) -> ModelFacts:
        """A local model that holds to a schema and calls tools."""
        return ModelFacts(has_schema=True, is_local=True)

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:  # noqa: ARG002 - the port's
        """See ``Model``. Takes milliseconds; never fails."""
        call = _tool_call(prompt)
        text = "" if call is not None else _answer(prompt)
        made = Completion(
            text=text,
            tool_calls=() if call is None else (call,),
            model=NAME,
            finish="stop" if call is None else "tool_calls",
            cost_usd=Decimal(0),
            is_estimated=True,
        )
        return msgspec.structs.replace(made, usage=usage.estimated(prompt, made))

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """See ``Model``."""
        made = await self.complete(prompt, timeout_s=timeout_s, key=key)
        for piece in re.findall(r"\S+\s*|\s+", made.text):
            yield Delta(text=piece)
        yield made

    def count_tokens(self, prompt: Prompt) -> int:
        """See ``Model``."""
        return estimate.prompt_tokens(prompt)

    def cost(self, usage: Usage) -> Decimal | None:  # noqa: ARG002 - as a model with a price has it
        """Return 0: it costs nothing."""
        return Decimal(0)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``: the offline vectors."""
        return embed_texts(texts)

    async def close(self) -> None:
        """Nothing is open."""


def build(name: str, settings: AgentSettings) -> Extractive:  # noqa: ARG001 - a factory's signature
    """Return the model; there is one, whatever follows its name."""
    return Extractive()


# --- answers


def _answer(prompt: Prompt) -> str:
    source = _source(prompt.messages)
    if prompt.output is not None:
        filled = _fill(prompt.output, source, name="", defs=_definitions(prompt.output), depth=0)
        return msgspec.json.encode(filled).decode()
    return "\n".join(_best(source, _SENTENCES)) or "There is nothing in the prompt to answer from."


def _source(messages: Sequence[Message]) -> str:
    """Return the text that answers come from: what tools found since the last question, else that question."""
    at = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    found = [message.text for message in messages[at + 1 :] if message.role == "tool" and message.text.strip()]
    text = messages[at].text if at >= 0 else "\n\n".join(message.text for message in messages)
    return _MARK.sub("", "\n\n".join(found) if found else text)


def _sentences(text: str) -> list[str]:
    parts = (" ".join(_BULLET.sub("", part).split()) for part in _SPLIT.split(text))
    return [part[:_SENTENCE_CHARS] for part in parts if part]


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _DULL]


def _best(text: str, limit: int) -> list[str]:
    """Return the sentences that share most with the whole text, in their order."""
    sentences = list(dict.fromkeys(_sentences(text)))
    weight = Counter(_words(text))
    scored = []
    for number, sentence in enumerate(sentences):
        words = set(_words(sentence))
        # long sentences hold more words of any kind; the first ones say what it is about
        score = sum(weight[word] for word in words) / (len(words) + 4) + (0.5 if number == 0 else 0.0)
        scored.append((-score, number))
    chosen = sorted(number for _, number in sorted(scored)[:limit])
    return [sentences[number] for number in chosen]


# --- schemas


def _definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for key in ("$defs", "definitions"):
        part = schema.get(key)
        if isinstance(part, dict):
            found |= part
    return found


def _fill(schema: Any, source: str, *, name: str, defs: Mapping[str, Any], depth: int) -> Any:  # noqa: ANN401 - JSON
    """Return a value that fits a schema, made of what the text holds."""
    if not isinstance(schema, dict) or depth > _DEPTH:
        return None
    if "$ref" in schema:
        return _fill(
            defs.get(str(schema["$ref"]).rpartition("/")[2], {}), source, name=name, defs=defs, depth=depth + 1
        )
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return _mentioned(schema["enum"], source)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            options = [one for one in schema[key] if not (isinstance(one, dict) and one.get("type") == "null")]
            return _fill(options[0] if options else {}, source, name=name, defs=defs, depth=depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    return _of_kind(str(kind), schema, source, name=name, defs=defs, depth=depth)


def _of_kind(
    kind: str, schema: Mapping[str, Any], source: str, *, name: str, defs: Mapping[str, Any], depth: int
) -> Any:  # noqa: ANN401 - JSON
    match kind:
        case "object":
            return _object(schema.get("properties") or {}, source, defs=defs, depth=depth)
        case "array":
            return _items(schema, source, name=name, defs=defs, depth=depth)
        case "integer" | "number":
            return _number(schema, source, whole=kind == "integer")
        case "boolean":
            return bool(set(_words(name.replace("_", " "))) & set(_words(source)))
        case "null":
            return None
        case _:
            return _text(schema, source, name)


def _object(properties: Mapping[str, Any], source: str, *, defs: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Fill the fields; a text's numbers go to them in their order, each to one as long as there are enough."""
    found: dict[str, Any] = {}
    unused = source
    for key, part in properties.items():
        is_number = isinstance(part, dict) and part.get("type") in ("integer", "number")
        given = unused if is_number and _NUMBER.search(unused) else source
        found[key] = _fill(part, given, name=key, defs=defs, depth=depth + 1)
        if is_number and (taken := _NUMBER.search(unused)) is not None:
            unused = unused[taken.end() :]
    return found


def _items(schema: Mapping[str, Any], source: str, *, name: str, defs: Mapping[str, Any], depth: int) -> list[Any]:
    least = int(schema.get("minItems") or 0)
    most = int(schema.get("maxItems") or _ITEMS)
    parts = _best(source, max(least, min(most, _ITEMS))) or [source or name]
    parts += [parts[-1]] * (least - len(parts))
    prefix = schema.get("prefixItems")
    if isinstance(prefix, list):
        return [_fill(one, source, name=name, defs=defs, depth=depth + 1) for one in prefix]
    return [_fill(schema.get("items") or {}, part, name=name, defs=defs, depth=depth + 1) for part in parts]


def _number(schema: Mapping[str, Any], source: str, *, whole: bool) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    for text in _NUMBER.findall(source):
        value = float(text)
        if (low is None or value >= low) and (high is None or value <= high) and (not whole or value.is_integer()):
            return int(value) if whole else value
    fallback = low if low is not None else min(0, high) if high is not None else 0
    return int(fallback) if whole else float(fallback)


def _text(schema: Mapping[str, Any], source: str, name: str) -> str:
    wanted = name.casefold()
    found = ""
    if wanted in ("path", "file", "folder", "directory", "filename"):
        found = _first(_PATH, source)
    elif wanted in ("url", "link", "address"):
        found = _first(_URL, source)
    elif wanted in ("title", "name", "id", "key", "topic", "query", "pattern", "word"):
        found = _first(_QUOTED, source) or " ".join(word for word, _ in Counter(_words(source)).most_common(4))
    text = found or " ".join(_best(source, 2)) or source.strip() or name
    return text[: int(schema.get("maxLength") or len(text))]


def _mentioned(options: Sequence[Any], source: str) -> Any:  # noqa: ANN401 - JSON
    low = source.casefold()
    places = [(low.find(str(one).casefold()), number) for number, one in enumerate(options)]
    said = [place for place in places if place[0] >= 0]
    return options[min(said)[1]] if said else options[0]


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return "" if found is None else found.group(found.lastindex or 0)


# --- tools


def _tool_call(prompt: Prompt) -> ToolCall | None:
    """Return the call of the tool that fits the question best and was not called for it yet; None for an answer."""
    if not prompt.tools or prompt.tool_choice == "none":
        return None
    at = max((number for number, message in enumerate(prompt.messages) if message.role == "user"), default=-1)
    question = prompt.messages[at].text if at >= 0 else ""
    called = {call.name for message in prompt.messages[at + 1 :] for call in message.tool_calls}
    open_tools = [tool for tool in prompt.tools if tool.name not in called]
    if prompt.tool_choice not in ("auto", "required"):
        chosen = next((tool for tool in open_tools if tool.name == prompt.tool_choice), None)
        return None if chosen is None else _call(chosen, question, at)
    best = max(open_tools, key=lambda tool: _shared(tool, question), default=None)
    if best is None or (prompt.tool_choice == "auto" and _shared(best, question) == 0):
        return None
    return _call(best, question, len(prompt.messages))


def _shared(tool: ToolSpec, question: str) -> int:
    asked = set(_words(question.replace("_", " ")))
    name = set(_words(tool.name.replace("_", " ").replace("-", " ")))
    return 3 * len(name & asked) + len((set(_words(tool.description)) - name) & asked)


def _call(tool: ToolSpec, question: str, place: int) -> ToolCall:
    required = set(tool.parameters.get("required") or ())
    filled = _fill(tool.parameters, question, name="", defs=_definitions(tool.parameters), depth=0) or {}
    # a schema that says nothing of an object is filled with a text
    fields = filled if isinstance(filled, dict) else {}
    given = {key: value for key, value in fields.items() if key in required}
    return ToolCall(id=f"{tool.name}-{place}", name=tool.name, arguments=msgspec.json.encode(given).decode())
