"""Bodies of ``cb.registry.*``: requests in JSON, answered in JSON by whoever leads the registry.

An answer is the struct named beside each request, or ``{"error": {"code", "message", "near"}}`` with the header
``Cb-Error``. Fields with a default may be left out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from callboard.runtime.beat import Count
from callboard.runtime.registry.record import TIMEOUT_S, AgentRecord, CapabilitySpec

REGISTER = "cb.registry.register"
DEREGISTER = "cb.registry.deregister"
BEAT = "cb.registry.beat"
# each of the three may name the agent's type as a last token, so that a server can limit who registers which
OF_A_TYPE = (REGISTER, DEREGISTER, BEAT)
FIND = "cb.registry.find"
PICK = "cb.registry.pick"
LIST = "cb.registry.list"
# plain, unstored: a status that changed, for whoever watches
CHANGED = "cb.registry.changed"
# plain, unstored: a caller's word that a request to a picked agent has ended
SERVED = "cb.registry.served"
LIMIT = 100
MAX_LIMIT = 1000

Status = Literal["idle", "busy", "paused", "failed", "draining", "suspect", "offline"]


class Register(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of ``cb.registry.register``: enter an agent, or renew what it says of itself. Answer: ``Registered``.

    Attributes:
        capabilities: Names, or whole specifications.
        instance: Any text that is this process's own; the same again renews, another one is refused while the first
            is alive.
    """

    type: str
    key: str
    capabilities: list[str | CapabilitySpec] = []
    labels: dict[str, str] = {}
    version: str = ""
    host: str = ""
    instance: str = ""
    weight: int = 1
    timeout_s: float = TIMEOUT_S


class Registered(Struct, frozen=True, kw_only=True):
    """Answer to ``Register``.

    Attributes:
        ask: Subject on which the agent is asked: it must listen there.
        beat: Subject of its beats.
        every_s: How often to beat.
    """

    address: str
    revision: int
    ask: str
    beat: str
    every_s: float


class Deregister(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of ``cb.registry.deregister``. Answer: ``{"ok": true}``; unknown agents are an error ``not_found``."""

    type: str
    key: str
    instance: str = ""


class AgentBeat(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of ``cb.registry.beat``: an agent that no worker hosts is alive. May be plain, or a request.

    Attributes:
        busy: Requests under way, 0 to 10^12; a beat with another number is none.
        waiting: Requests that wait in it, the same.
        status: ``ready``, ``paused``, ``draining`` or ``failed``.
    """

    type: str
    key: str
    instance: str = ""
    busy: Count = 0
    waiting: Count = 0
    status: Literal["ready", "paused", "draining", "failed"] = "ready"


class Query(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of ``cb.registry.find``, ``.pick`` and ``.list``; what is given must all hold.

    Attributes:
        capability: It can do this.
        all: It can do all of these.
        any: It can do at least one of these.
        type: Its type.
        status: It is in one of these states; by default any but ``offline``.
        host: It runs there.
        labels: It has all of these.
        version: Its code's version.
        capability_version: That of the capability.
        input: JSON schema of what will be sent: the capability must take it, where both say.
        exclude: Addresses that are not meant, such as those that have failed.
        limit: Most agents in the answer, 1 to 1,000.
        after: Address after which to go on, for the next page.
        caller: Names who asks, for the reservation of a pick.
    """

    capability: str = ""
    all: list[str] = []
    any: list[str] = []
    type: str = ""
    status: list[Status] = []
    host: str = ""
    labels: dict[str, str] = {}
    version: str = ""
    capability_version: str = ""
    input: dict[str, Any] = {}
    exclude: list[str] = []
    limit: int = LIMIT
    after: str = ""
    caller: str = ""


class AgentView(Struct, frozen=True, kw_only=True):
    """An agent as the registry sees it now.

    Attributes:
        busy: Requests under way.
        waiting: Requests that wait.
        reserved: Picks of the last moments whose request has not shown up in a beat yet.
        load: (busy + waiting + reserved) / weight.
        worker: Worker that hosts it now, "" when none or not known.
        seen_at: When it, or a worker that hosts it, was last heard.
        latency_s: Mean time of its recent answers, None before the first.
        problem: Why it is paused, failed, suspect or offline.
    """

    record: AgentRecord
    status: Status
    busy: int = 0
    waiting: int = 0
    reserved: int = 0
    load: float = 0.0
    worker: str = ""
    seen_at: datetime | None = None
    latency_s: float | None = None
    problem: str = ""


class PoolWorkerView(Struct, frozen=True, kw_only=True):
    """A worker's slots of a capability.

    Attributes:
        type: Actor type whose actors do it, "" for a plain function. A type whose actors have done nothing yet has no
            agent in the registry: ask ``<type>/<any key>``.
    """

    worker: str
    host: str
    labels: dict[str, str]
    status: str
    slots: int
    busy: int
    backlog: int
    type: str = ""


class Found(Struct, frozen=True, kw_only=True):
    """Answer to ``cb.registry.find`` and ``.list``.

    Attributes:
        agents: By address.
        workers: Workers with slots of the capability, where one was asked for.
        next: What to give as ``after`` for the rest, "" at the end.
        near: The nearest names that exist, when nobody has the capability, or is of the type.
        as_of: When the registry looked.
    """

    agents: list[AgentView]
    workers: list[PoolWorkerView]
    as_of: datetime
    next: str = ""
    near: list[str] = []


class Why(Struct, frozen=True, kw_only=True):
    """How a choice came about.

    Attributes:
        text: In a sentence.
        able: Agents that have the capability and match.
        healthy: Those of them that take work now.
        refused: How many were left out for each reason: labels, version, status and so on.
        load: Of the chosen one, before this pick.
        runner_up: Address and load of the next best; "" when there was none.
    """

    text: str
    able: int
    healthy: int
    refused: dict[str, int]
    load: float
    runner_up: str = ""
    runner_up_load: float | None = None


class Picked(Struct, frozen=True, kw_only=True):
    """Answer to ``cb.registry.pick``.

    Attributes:
        agent: The chosen one; None when no agent fits and a plain pool does.
        pool: The pool's name, by label where labels were asked for, to submit a task to; "" when an agent was chosen.
        ask: Subject on which to ask the agent, or to submit to the pool.
        reserved_s: For how long its place is kept unless a beat shows the request.
    """

    agent: AgentView | None
    ask: str
    why: Why
    reserved_s: float
    pool: str = ""


class Served(Struct, frozen=True, kw_only=True):
    """Body of ``cb.registry.served``: a request to a picked agent has ended, well or not. It frees the reservation.

    Attributes:
        s: How long it took, in seconds; negative when it failed and says nothing of the agent's speed.
    """

    address: str
    s: float


class Changed(Struct, frozen=True, kw_only=True):
    """Body of ``cb.registry.changed``.

    Attributes:
        was: Status before, "" for a new agent.
        now: Status now, "" for one that has left.
    """

    address: str
    was: str
    now: str
    at: datetime


class _Typed(Struct):
    type: str


_typed = msgspec.json.Decoder(_Typed)


def type_of(subject: str) -> str:
    """Return the type that a subject of ``OF_A_TYPE`` is for, "" for one that is for all."""
    return subject.split(".")[3] if subject.count(".") == 3 else ""  # noqa: PLR2004 - cb.registry.<verb>.<type>


def is_meant(subject: str, data: bytes) -> bool:
    """Return whether a body is about an agent of the type that its subject is for; the server limits subjects only."""
    wanted = type_of(subject)
    if not wanted:
        return True
    try:
        return _typed.decode(data).type == wanted
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
