"""What ``@flow`` makes of a function, and what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest
from msgspec import Struct

from callboard.agents.asking import result_of
from callboard.agents.branch import Branch, Whom, as_branch
from callboard.agents.flow import Flow, flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import AgentRun, run_address, run_name, spent
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType, find_actors
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import ActorDefinitionError, InputError, InvalidNameError


class Job(Struct):
    text: str


@flow
async def weekly_digest(run: Run, job: Job) -> str:
    """Make a digest."""
    return f"{run.name} {job.text}"


@flow(name="other", timeout_s=60.0, patience_s=0.0)
async def anything(run: Run, job: object) -> str:
    return f"{run.name} {job}"


def test_a_function_becomes_an_actor_type() -> None:
    assert issubclass(weekly_digest, Flow)
    assert weekly_digest.actor_name == "run-weekly-digest"
    assert weekly_digest.__doc__ == "Make a digest."
    kind = ActorType(weekly_digest)
    kind.prepare()
    assert list(kind.handlers) == ["Job"]
    assert anything.actor_name == "run-other"
    assert (anything.timeout_s, anything.patience_s) == (60.0, 0.0)


def test_a_worker_finds_it_in_a_module() -> None:
    import sys

    names = [cls.actor_name for cls in find_actors(sys.modules[__name__])]
    assert "run-weekly-digest" in names
    assert "run-other" in names


def test_the_job_may_be_of_a_type_that_stands_in_a_function() -> None:
    class Local(Struct):
        n: int

    @flow
    async def local(run: Run, job: Local) -> int:
        return job.n

    kind = ActorType(local)
    kind.prepare()
    assert list(kind.handlers) == ["Local"]


def plain(run: Run, job: Job) -> None:
    """No coroutine."""


async def one(run: Run) -> None:
    """No job."""


async def three(run: Run, job: Job, more: int) -> None:
    """Too much."""


async def untyped(run: Run, job) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - the case
    """No type."""


@pytest.mark.parametrize(
    ("function", "text"),
    [(plain, "no async function"), (one, "two parameters"), (three, "two parameters"), (untyped, "annotate job")],
)
def test_what_is_no_flow_is_refused(function: Callable[..., Awaitable[None]], text: str) -> None:
    with pytest.raises(ActorDefinitionError, match=text):
        flow(function)
    with pytest.raises(ActorDefinitionError, match="take seconds above 0"):
        flow(timeout_s=0)(weekly)


async def weekly(run: Run, job: Job) -> None:
    """Fine but for its numbers."""


class Helper(Actor, name="helper"):
    @on
    async def work(self, m: Task) -> str:
        return m.text


async def own() -> int:
    return 1


@pytest.mark.parametrize(
    ("to", "label"),
    [("summarise", "summarise"), ("writer/ann", "writer"), ("writer/", "writer"), (Helper, "helper"), (own, "own")],
)
def test_a_branch_is_called_after_whom_it_asks(to: Whom, label: str) -> None:
    assert as_branch(to, "x").label == label
    assert as_branch(Branch(to, name="mine"), "x").label == "mine"
    assert as_branch(Branch(to, "own value"), "x").value == "own value"


@pytest.mark.parametrize("to", ["", 7, None, Branch("x", tries=0)])
def test_what_is_no_branch_is_refused(to: Whom) -> None:
    with pytest.raises(InputError, match="branch"):
        as_branch(to, "x")


@pytest.mark.parametrize(
    ("answer", "status", "text", "output"),
    [
        ("hi", "done", "hi", "hi"),
        (7, "done", "", 7),
        ({"status": "shipped"}, "done", "", {"status": "shipped"}),
        ({"status": "failed", "reason": "no"}, "failed", "", None),
        ({"status": "done", "text": "x", "cost_usd": "0.10"}, "done", "x", None),
        ({"status": "done", "turns": "many"}, "done", "", {"status": "done", "turns": "many"}),
        ({"run": "a/b", "status": "partial", "output": [1]}, "done", "", [1]),
        ({"run": "a/b", "status": "failed", "error": "no"}, "failed", "", None),
        ({"run": "a/b", "status": "cancelled"}, "stopped", "", None),
    ],
)
def test_any_answer_is_an_agents_result(answer: object, status: str, text: str, output: object) -> None:
    found = result_of(answer)
    assert (found.status, found.text, found.output) == (status, text, output)


def test_names_of_runs() -> None:
    assert str(run_address("digest/7")) == "run-digest/7"
    assert run_address("run-digest/7") == run_address("digest/7")
    assert run_name(run_address("digest/a/b")) == "digest/a/b"
    for name in ("digest", "/7", "digest/", "Digest/7"):
        with pytest.raises(InvalidNameError):
            run_address(name)


def test_a_price_is_exact_and_unknown_only_when_nobody_told_one() -> None:
    def part(cost: str | None) -> AgentRun:
        price = None if cost is None else Decimal(cost)
        return AgentRun(name="x", status="done", result=AgentResult(status="done", cost_usd=price))

    assert spent([part("0.1"), part("0.2"), part(None)])[1] == Decimal("0.3")
    assert spent([part(None)])[1] is None
    assert spent([])[1] is None
