"""A worker, as a process, whose actor asks a model over HTTP: ``python -m tests.support.think_host NATS PROVIDER``.

It prints ``ready`` when it serves and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import sys

from msgspec import Struct

from callboard.agents.budget import Budget
from callboard.agents.llm.base import Model, Prompt, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.models import resolve
from callboard.agents.settings import AgentSettings
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from callboard.runtime.worker import Worker
from tests.support.world import QUICK

MODEL = "here/small"


class Think(Struct):
    """Questions to ask one after the other, of one run."""

    questions: list[str]
    run: str


class Thinker(Actor):
    """Asks its model each question, paid by the run."""

    model: Model

    @on
    async def think(self, m: Think) -> list[str]:
        answers = []
        for text in m.questions:
            prompt = Prompt(messages=(user(text),), max_output_tokens=50)
            found = await call_model(self, self.model, prompt, run=m.run, budgets=(f"run/{m.run}",))
            answers.append(found.text)
        return answers


def model_at(url: str) -> Model:
    """Return the model of a provider on this machine; a token of the prompt costs a dollar, one of the answer two."""
    settings = AgentSettings.model_validate(
        {
            "providers": {"here": {"kind": "openai", "base_url": url, "api_key": "k"}},
            "prices": {"models": [{"model": MODEL, "input_usd": "1000000", "output_usd": "2000000"}]},
        }
    )
    return resolve(MODEL, settings=settings)


async def _main(nats: str, provider: str) -> None:
    async def connect(name: str) -> Bus:
        bus: Bus = await jetstream.connect(nats, name=name)
        return bus

    Thinker.model = model_at(provider)
    worker = Worker([], connect, actors=[Thinker, Budget], options=QUICK)
    await worker.run(_say_ready)


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
