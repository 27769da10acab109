"""What is known of well-known models without asking them: windows and abilities, as of 2026-11."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from callboard.agents.llm.base import ModelFacts
from callboard.agents.settings import ProviderSettings

# (beginning of provider/model, context window, longest answer); the longest beginning that fits counts.
_WINDOWS: Final = (
    ("openai/gpt-5", 400_000, 128_000),
    ("openai/gpt-4.1", 1_047_576, 32_768),
    ("openai/gpt-4o", 128_000, 16_384),
    ("openai/o3", 200_000, 100_000),
    ("openai/o4-mini", 200_000, 100_000),
    ("openai/text-embedding-3", 8_191, 1),
    ("anthropic/claude", 200_000, 64_000),
    ("ollama/", 8_192, 4_096),
)
_LOCAL_HOSTS: Final = {"localhost", "127.0.0.1", "::1"}
# Providers of which every current model keeps to a JSON Schema. Ollama does it for any model.
_WITH_SCHEMA: Final = {"openai", "ollama"}


def facts_of(name: str, provider: ProviderSettings, *, url: str = "") -> ModelFacts:
    """Return the facts of ``provider/model``: what was set, else what is known, else the careful default.

    Args:
        name: The model.
        provider: Its provider's settings.
        url: Where it is asked; one on this machine is local.
    """
    fitting = [row for row in _WINDOWS if name.startswith(row[0])]
    default = ModelFacts()
    _, context, longest = max(fitting, default=("", default.context_tokens, default.max_output_tokens), key=_length)
    label = name.partition("/")[0]
    is_local = urlsplit(url).hostname in _LOCAL_HOSTS
    return ModelFacts(
        context_tokens=provider.context_tokens or context,
        max_output_tokens=provider.max_output_tokens or longest,
        has_tools=True if provider.has_tools is None else provider.has_tools,
        has_schema=label in _WITH_SCHEMA if provider.has_schema is None else provider.has_schema,
        is_local=is_local if provider.is_local is None else provider.is_local,
    )


def _length(row: tuple[str, int, int]) -> int:
    return len(row[0])
