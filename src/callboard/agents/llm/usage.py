"""Usage of a call whose provider said nothing of it."""

from __future__ import annotations

from callboard.agents.llm import estimate
from callboard.agents.llm.base import Completion, Prompt, Usage


def estimated(prompt: Prompt, completion: Completion) -> Usage:
    """Return our own count, rather too high."""
    output = estimate.text_tokens(completion.text) + sum(
        estimate.text_tokens(call.name) + estimate.text_tokens(call.arguments) for call in completion.tool_calls
    )
    return Usage(input_tokens=estimate.prompt_tokens(prompt), output_tokens=output)
