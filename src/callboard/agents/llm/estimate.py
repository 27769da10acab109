"""How many tokens a text has, without the model's tokeniser: rather too many than too few."""

from __future__ import annotations

import math

import msgspec

from callboard.agents.llm.base import Message, Prompt

# English has about 4.2 letters a token and program code about 3.3; other scripts come near a token for each character.
_LETTERS_PER_TOKEN = 3.2
_TOKENS_PER_OTHER = 1.3
_PER_MESSAGE = 4
_PER_TOOL = 12


def text_tokens(text: str) -> int:
    """Return the estimated tokens of a text. Takes about a microsecond for a thousand letters."""
    if text.isascii():
        return math.ceil(len(text) / _LETTERS_PER_TOKEN)
    letters = len(text.encode("ascii", "ignore"))
    return math.ceil(letters / _LETTERS_PER_TOKEN + (len(text) - letters) * _TOKENS_PER_OTHER)


def message_tokens(message: Message) -> int:
    """Return the estimated tokens of one message, its tool calls included."""
    calls = sum(_PER_TOOL + text_tokens(call.name) + text_tokens(call.arguments) for call in message.tool_calls)
    return _PER_MESSAGE + text_tokens(message.text) + calls


def prompt_tokens(prompt: Prompt) -> int:
    """Return the estimated tokens of a prompt with its tools and its schema."""
    found = sum(message_tokens(message) for message in prompt.messages)
    for tool in prompt.tools:
        found += _PER_TOOL + text_tokens(tool.name) + text_tokens(tool.description) + _json_tokens(tool.parameters)
    return found + (_json_tokens(prompt.output) if prompt.output is not None else 0)


def _json_tokens(value: object) -> int:
    return text_tokens(msgspec.json.encode(value).decode())
