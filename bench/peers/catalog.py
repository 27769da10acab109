"""All peers, in the order of the report."""

from __future__ import annotations

from bench.peers.peer import Peer, Variant
from bench.peers.systems.arq import Arq
from bench.peers.systems.autogen_core import AutogenCore
from bench.peers.systems.callboard import Callboard
from bench.peers.systems.celery import Celery
from bench.peers.systems.dbos import Dbos
from bench.peers.systems.dramatiq import Dramatiq
from bench.peers.systems.faststream import FastStream
from bench.peers.systems.langgraph import LangGraph
from bench.peers.systems.procrastinate import Procrastinate
from bench.peers.systems.ray import Ray
from bench.peers.systems.restate import Restate
from bench.peers.systems.taskiq_nats import TaskiqNats

PEERS: tuple[Peer, ...] = (
    Callboard(),
    Celery(),
    TaskiqNats(),
    FastStream(),
    Dramatiq(),
    Arq(),
    Procrastinate(),
    Dbos(),
    AutogenCore(),
    Ray(),
    LangGraph(),
    Restate(),
)


def chosen(words: str) -> list[tuple[Peer, Variant]]:
    """Return the rows that ``words`` name: ``celery,callboard:always``; a peer alone means all its rows, "" all peers.

    Raises:
        ValueError: Naming a peer or row that there is not, and those there are.
    """
    every = [(peer, variant) for peer in PEERS for variant in peer.variants]
    names = [word.strip() for word in words.split(",") if word.strip()]
    found = [row for row in every if not names or row[0].name in names or row_name(*row) in names]
    known = {peer.name for peer in PEERS} | {row_name(*row) for row in every}
    if unknown := [name for name in names if name not in known]:
        message = f"no peer or row {', '.join(unknown)}; there are {', '.join(row_name(*row) for row in every)}"
        raise ValueError(message)
    return found


def row_name(peer: Peer, variant: Variant) -> str:
    """Return what a row is called: ``celery:always``."""
    return f"{peer.name}:{variant.key}"
