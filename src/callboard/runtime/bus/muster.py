"""Which servers of a cluster are there? A look at each address, for the message of a command that got no answer.

It asks nothing of JetStream, so it works when JetStream does not: a server greets whoever connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

LOOK_WITHIN_S = 1.0
_PORT = 4222

State = Literal["answers", "silent", "away"]


class Present(Struct, frozen=True, kw_only=True):
    """What one address showed.

    Attributes:
        name: The server's own name, or the address when it told none.
        state: ``answers``; ``silent`` takes connections and says nothing, as a stopped process does; ``away`` has
            nobody listening.
    """

    url: str
    name: str
    state: State


async def look(
    urls: Sequence[str], *, names: Mapping[str, str] | None = None, within_s: float = LOOK_WITHIN_S
) -> list[Present]:
    """Look at all addresses at once, for ``within_s`` at most.

    Args:
        urls: Where the servers should be.
        names: What those that do not answer are called, by address.
        within_s: How long each may take to greet.
    """
    return list(await asyncio.gather(*(_look(url, (names or {}).get(url, ""), within_s) for url in urls)))


def has_majority(found: Sequence[Present]) -> bool:
    """Return whether more than half of the servers answer."""
    return 2 * sum(each.state == "answers" for each in found) > len(found)


def explain(found: Sequence[Present]) -> str:
    """Say what is wrong with a cluster whose JetStream does not answer, and what to do."""
    total = len(found)
    needed = total // 2 + 1
    there = [each for each in found if each.state == "answers"]
    missing = "; ".join(_said(each) for each in found if each.state != "answers")
    if has_majority(found):
        away = f" ({missing})" if missing else ""
        return (
            f"{len(there)} of {total} servers answer{away}, and they have no leader: an election takes up to ten "
            "seconds, so try again; if it stays, the servers do not reach each other: check the routes between them"
        )
    present = ", ".join(_named(each) for each in there) or "none"
    return (
        f"the cluster has lost its majority: {len(there)} of {total} servers answer ({present}), {needed} are needed. "
        f"{missing}. Start those again with the data they had; until then nothing can be stored, and nothing that was "
        "acknowledged is lost"
    )


async def _look(url: str, name: str, within_s: float) -> Present:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or _PORT)
            try:
                line = b"" if parts.scheme.startswith("ws") else await reader.readline()
            finally:
                writer.transport.abort()
                # it is closed a turn of the loop later, and this may be the last one
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return Present(url=url, name=name or url, state="silent")
    except OSError:
        return Present(url=url, name=name or url, state="away")
    return Present(url=url, name=_name(line) or name or url, state="answers")


def _name(line: bytes) -> str:
    try:
        return str(json.loads(line.removeprefix(b"INFO ")).get("server_name", ""))
    except (ValueError, AttributeError):
        return ""


def _named(server: Present) -> str:
    return server.url if server.name == server.url else f"{server.name} at {server.url}"


def _said(server: Present) -> str:
    if server.state == "silent":
        return f"{_named(server)} takes connections and says nothing (stopped or overloaded)"
    return f"{_named(server)} is away"
