"""Callboard: a durable actor runtime for AI agents on NATS JetStream.

The names below are all a program needs. Each is imported when it is first used, so that ``import callboard`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callboard.agents.agent import Agent
    from callboard.agents.branch import Branch
    from callboard.agents.flow import flow
    from callboard.agents.message import AgentResult, Task
    from callboard.agents.run import Run
    from callboard.agents.tools.context import ToolContext
    from callboard.agents.tools.decorator import tool
    from callboard.runtime import errors, testing
    from callboard.runtime.actor.actor import Actor
    from callboard.runtime.actor.address import Address
    from callboard.runtime.actor.handler import every, on
    from callboard.runtime.actor.migration import migrate
    from callboard.runtime.actor.notice import ActorFailed
    from callboard.runtime.actor.parts import Gap
    from callboard.runtime.actor.ref import ActorRef
    from callboard.runtime.actor.turn_api import current_turn
    from callboard.runtime.capability import Capability, capability
    from callboard.runtime.client import Cancellation, Client, TaskHandle
    from callboard.runtime.context import TaskContext, current_task
    from callboard.runtime.errors import (
        BackpressureError,
        CallboardError,
        RetryableError,
        TaskFailedError,
        TerminalError,
    )
    from callboard.runtime.here import find, pick
    from callboard.runtime.host import connect
    from callboard.runtime.record import TaskRecord
    from callboard.runtime.registry.handle import AgentHandle, PoolHandle
    from callboard.runtime.retry import RetryPolicy
    from callboard.runtime.worker import Worker, WorkerOptions

__all__ = [
    "Actor",
    "ActorFailed",
    "ActorRef",
    "Address",
    "Agent",
    "AgentHandle",
    "AgentResult",
    "BackpressureError",
    "Branch",
    "CallboardError",
    "Cancellation",
    "Capability",
    "Client",
    "Gap",
    "PoolHandle",
    "RetryPolicy",
    "RetryableError",
    "Run",
    "Task",
    "TaskContext",
    "TaskFailedError",
    "TaskHandle",
    "TaskRecord",
    "TerminalError",
    "ToolContext",
    "Worker",
    "WorkerOptions",
    "capability",
    "connect",
    "current_task",
    "current_turn",
    "errors",
    "every",
    "find",
    "flow",
    "migrate",
    "on",
    "pick",
    "testing",
    "tool",
]

_HOMES = {
    "Actor": "actor.actor",
    "ActorFailed": "actor.notice",
    "ActorRef": "actor.ref",
    "Address": "actor.address",
    "AgentHandle": "registry.handle",
    "BackpressureError": "errors",
    "CallboardError": "errors",
    "Cancellation": "client",
    "Capability": "capability",
    "Client": "client",
    "Gap": "actor.parts",
    "PoolHandle": "registry.handle",
    "RetryPolicy": "retry",
    "RetryableError": "errors",
    "TaskContext": "context",
    "TaskFailedError": "errors",
    "TaskHandle": "client",
    "TaskRecord": "record",
    "TerminalError": "errors",
    "Worker": "worker",
    "WorkerOptions": "worker",
    "capability": "capability",
    "connect": "host",
    "current_task": "context",
    "current_turn": "actor.turn_api",
    "every": "actor.handler",
    "find": "here",
    "migrate": "actor.migration",
    "on": "actor.handler",
    "pick": "here",
}
_AGENT_HOMES = {
    "Agent": "agent",
    "AgentResult": "message",
    "Branch": "branch",
    "Run": "run",
    "Task": "message",
    "ToolContext": "tools.context",
    "flow": "flow",
    "tool": "tools.decorator",
}


def __getattr__(name: str) -> object:
    if name in ("errors", "testing"):
        found: object = importlib.import_module(f"callboard.runtime.{name}")
    elif name in _HOMES:
        found = getattr(importlib.import_module(f"callboard.runtime.{_HOMES[name]}"), name)
    elif name in _AGENT_HOMES:
        found = getattr(importlib.import_module(f"callboard.agents.{_AGENT_HOMES[name]}"), name)
    else:
        message = f"module 'callboard' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
