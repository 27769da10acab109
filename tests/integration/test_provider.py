"""The provider of the tests, as a process: it counts calls in a file that outlives whoever made them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from callboard.agents.errors import ModelUnknownError
from callboard.agents.llm.base import Prompt, user
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings
from tests.support.provider import Say

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "script").write_bytes(msgspec.json.encode([Say("four", when="2+2")]))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.provider", "--script", str(tmp_path / "script"), "--calls", str(tmp_path / "calls")),
        *("--key", "k", "--models", "small"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().strip()
    process.terminate()
    assert await process.wait() == 0


async def test_each_call_is_a_line(url: str, tmp_path: Path) -> None:
    given = AgentSettings.model_validate({"providers": {"near": {"base_url": url, "api_key": "k"}}})
    model = resolve("near/small", settings=given)
    assert (await model.complete(Prompt(messages=(user("2+2"),)))).text == "four"
    assert (await model.complete(Prompt(messages=(user("3+3"),)))).text == "echo: 3+3"
    unknown = resolve("near/large", settings=given)
    with pytest.raises(ModelUnknownError):
        await unknown.complete(Prompt(messages=(user("2+2"),)))
    await model.close()
    await unknown.close()
    lines = [msgspec.json.decode(line) for line in (tmp_path / "calls").read_bytes().splitlines()]
    assert [(line["number"], line["model"], line["last"]) for line in lines] == [
        (1, "small", "2+2"),
        (2, "small", "3+3"),
        (3, "large", "2+2"),
    ]
