"""Two agents, a tool and a flow.

Run `callboard dev examples/team.py`, then in a second terminal
`callboard ask estimator/ann Task '{"text": "A wall of 3 by 4 metres"}'` for one agent, or
`callboard runs start quote '{"walls": ["3 by 4 metres", "5 by 2 metres"]}' --wait` for the team.
No key is needed: without a model of yours the extractive one answers, and says so.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from callboard import Agent, Branch, Run, flow, tool


@tool
def area(width_m: float, height_m: float) -> float:
    """Area of a rectangle in square metres.

    Args:
        width_m: Width in metres.
        height_m: Height in metres.
    """
    return width_m * height_m


class Estimator(Agent, name="estimator", tools=[area], capabilities=["estimate"]):
    """You estimate how much paint a wall needs. A litre covers eight square metres."""


class Clerk(Agent, name="clerk", capabilities=["offer"]):
    """You write a short, friendly offer out of the estimates that you are given."""


class Job(Struct):
    """What a quote is asked for."""

    walls: list[str]


@flow
async def quote(run: Run, job: Job) -> dict[str, Any]:
    """Estimate all walls side by side, then have an offer written."""
    branches = [Branch("estimate", f"A wall of {wall}", is_optional=True) for wall in job.walls]
    parts = await run.parallel(branches, cap=3, deadline_s=600)
    found = [part.text for part in parts.results.values()]
    offer = await run.agent("offer", "Write the offer: " + " ".join(found))
    return {"offer": offer.text, "without": parts.missing}
