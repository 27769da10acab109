"""A worker whose handlers ask no model has none of their libraries in memory."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.console import Console

MODULE = '''
import sys

from callboard import capability
from callboard.agents.llm.base import Prompt, user
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings
from callboard.agents.errors import ModelError


@capability("loaded")
async def loaded() -> list[str]:
    """Return which of the libraries are imported."""
    return sorted({"httpx", "litellm", "openai"} & set(sys.modules))


@capability("think")
async def think() -> str:
    """Ask a model that is not there."""
    near = {"base_url": "http://127.0.0.1:9/v1", "attempts": 1}
    settings = AgentSettings.model_validate({"providers": {"near": near}})
    try:
        await resolve("near/x", settings=settings).complete(Prompt(messages=(user("hello"),)))
    except ModelError as error:
        return error.code
    return ""
'''


def test_a_plain_worker_imports_no_library_of_models(tmp_path: Path) -> None:
    console = Console(tmp_path)
    try:
        console.up()
        (tmp_path / "module.py").write_text(MODULE)
        console.start("worker", "start", "module.py")
        assert _result(console, "loaded") == []
        # negative control: a call does import one
        assert _result(console, "think") == "model_transient"
        assert _result(console, "loaded") == ["httpx"]
    finally:
        console.close()


def _result(console: Console, capability: str) -> object:
    run = console.run("submit", capability, "--wait", "--json", "--no-warn")
    assert run.status == 0, run
    return run.json["result"]
