"""The libraries that ask models are imported by the first call of one, and by nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
HEAVY = ("httpx", "httpcore", "litellm", "openai", "certifi")
RESOLVE = """
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings
settings = AgentSettings.model_validate({"providers": {
    "openai": {"api_key": "sk-12345678"}, "anthropic": {"api_key": "sk-12345678"}}})
"""
CALL = """
import asyncio
from callboard.agents.errors import ModelError
from callboard.agents.llm.base import Prompt, user
async def ask():
    near = {"base_url": "http://127.0.0.1:9/v1", "attempts": 1}
    model = resolve("near/x", settings=AgentSettings.model_validate({"providers": {"near": near}}))
    try:
        await model.complete(Prompt(messages=(user("hello"),)))
    except ModelError as error:
        assert error.code == "model_transient", error
asyncio.run(ask())
"""


def loaded(code: str) -> list[str]:
    """Run a program and return which of the libraries it has imported."""
    program = f"import sys\n{code}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import callboard",
        "from callboard.cli.main import cli\nfor name in cli.list_commands(None): cli.get_command(None, name)",
        "import callboard.runtime.host",
        RESOLVE + "resolve('openai/gpt-5', settings=settings)",
        RESOLVE + "resolve('ollama/llama3.2', settings=settings)",
        RESOLVE + "resolve('extractive', settings=settings)",
    ],
)
def test_nothing_is_imported_before_a_model_is_asked(code: str) -> None:
    assert loaded(code) == []


def test_a_model_through_litellm_is_found_without_importing_it() -> None:
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed here; `make test-llm` runs this in an environment that has it")
    assert loaded(RESOLVE + "resolve('anthropic/claude-sonnet-4-5', settings=settings)") == []


def test_the_first_call_imports_its_library() -> None:
    """Negative control."""
    assert "httpx" in loaded(RESOLVE + CALL)
    assert "litellm" not in loaded(RESOLVE + CALL)
