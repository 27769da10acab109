"""Orders to workers: bodies of the ``cb.ctl`` subjects and keys of live settings."""

from __future__ import annotations

import msgspec
from msgspec import Struct

CONFIG_BUCKET = "CB_CONFIG"
PAUSE_PREFIX = "pause."


class Order(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.worker.<worker>``: ``op`` is ``drain``, or ``slots`` with a capability and a number."""

    op: str
    capability: str = ""
    slots: int = 0


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Body of ``cb.ctl.cancel``."""

    task: str
    reason: str = "cancelled by request"


decode_order = msgspec.json.Decoder(Order).decode
decode_cancel = msgspec.json.Decoder(CancelRequest).decode
