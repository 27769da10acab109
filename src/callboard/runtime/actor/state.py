"""An actor's state between record and object."""

from __future__ import annotations

from msgspec import UNSET, Raw

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.blobs import BlobStore


async def actor_of(kind: ActorType, address: Address, record: StateRecord, blobs: BlobStore) -> Actor:
    """Return an instance with the state that the record holds, migrated to the class's version.

    Raises:
        StateDecodeError: If the state does not fit the class.
        MigrationError: If it could not be brought to the class's version.
        BusError: If it lies in the object store and cannot be read now.
    """
    raw = record.state
    if record.blob is not UNSET:
        raw = Raw(await blobs.get(record.blob))
    actor = kind.new(address)
    actor.state = kind.load_state(raw, record.schema)
    return actor
