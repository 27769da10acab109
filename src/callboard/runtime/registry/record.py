"""What stands in ``CB_REGISTRY``: one record an agent, under ``agent.<type>.<escaped key>``, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.errors import DecodeError

BUCKET = "CB_REGISTRY"
PREFIX = "agent."
# An agent that beats for itself is suspect after two missed beats and offline after this, unless it says otherwise.
TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 3600.0
MAX_WEIGHT = 100_000
# All of a record, as JSON: a page of look-ups must fit into one message.
MAX_BYTES = 64 * 1024


class CapabilitySpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that an agent can do.

    Attributes:
        name: A single token, ``[a-z0-9_-]+``.
        version: Of the capability, any text without spaces; equal versions take and give the same.
        input: JSON schema of what it takes; {} when it says nothing.
        output: JSON schema of what it gives; {} when it says nothing.
        cost: Hints by unit, such as ``{"usd": 0.02, "s": 40}``; what one request costs on average.
    """

    name: str
    version: str = "1"
    input: dict[str, Any] = {}
    output: dict[str, Any] = {}
    cost: dict[str, float] = {}


class AgentRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says of itself when it registers. Its load is not here: beats carry it.

    Attributes:
        type: First part of its address, a single token.
        key: Second part, any text up to 256 bytes.
        capabilities: What it can do.
        labels: Facts for selection.
        version: Of its code, any text.
        host: Where it runs; "" for an agent that workers host, which is wherever its partition is.
        instance: Who registered: two processes that claim one address differ in it. "" for an agent that workers host.
        weight: Requests that it can do at once; its share of work is in proportion.
        timeout_s: Silence after which an agent that beats for itself is offline.
        is_hosted: Whether workers host it: then it lives as long as one of them hosts its type, and needs no beats.
        status: ``paused`` or ``failed`` where a person or its failures stopped an agent that workers host; it lasts
            across hosts, so it stands here and not in beats.
        problem: Why it is.
        registered_at: When it first did.
    """

    v: int = 1
    type: str
    key: str
    capabilities: list[CapabilitySpec]
    labels: dict[str, str] = {}
    version: str = ""
    host: str = ""
    instance: str = ""
    weight: int = 1
    timeout_s: float = TIMEOUT_S
    is_hosted: bool = False
    status: Literal["active", "paused", "failed"] = "active"
    problem: str = ""
    registered_at: datetime

    @property
    def address(self) -> str:
        """``<type>/<key>``."""
        return f"{self.type}/{self.key}"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AgentRecord)


def record_key(kind: str, key: str) -> str:
    """Return the key of an agent's record in the bucket: its key with ``=XX`` for all but ``A-Z a-z 0-9 - _``.

    Keys of buckets have no ``%``, which subjects are escaped with.

    Raises:
        InvalidNameError: If the address cannot be used.
    """
    _ = subjects.escape(key)
    token = quote(key, safe="-_").replace("~", "%7E").replace(".", "%2E").replace("%", "=")
    return f"{PREFIX}{subjects.check_name(kind, what='agent type')}.{token}"


def address_at(place: str) -> tuple[str, str]:
    """Return type and key of the agent whose record stands under a key of the bucket."""
    kind, _, token = place.removeprefix(PREFIX).partition(".")
    return kind, unquote(token.replace("=", "%"))


def encode(record: AgentRecord) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


def decode(data: bytes) -> AgentRecord:
    """Return the record in ``data``.

    Raises:
        DecodeError: If it is none, has a number that nobody could register with, or is one of a later version.
    """
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is no record of an agent: {error}"
        raise DecodeError(message) from error
    if found.v != 1:
        message = f"the agent's record has version {found.v}, this process knows 1: run the newer Callboard here"
        raise DecodeError(message)
    if not (1 <= found.weight <= MAX_WEIGHT and 1.0 <= found.timeout_s <= MAX_TIMEOUT_S):
        message = f"an agent's record takes a weight of 1 to {MAX_WEIGHT} and a timeout_s of 1 to {MAX_TIMEOUT_S:g}"
        raise DecodeError(message)
    return found
