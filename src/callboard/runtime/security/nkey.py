"""Logins without a password: the server knows the public half, the seed stays in a file only its user may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from callboard.runtime.errors import ConfigError, MissingExtraError

_SEED_BYTES = 32
SECRET_MODE = 0o600
FOLDER_MODE = 0o700


def ensure(path: Path, *, rotate: bool = False) -> str:
    """Return the public key of the seed in ``path``, making the seed when there is none.

    Args:
        path: The file; made with mode 0600 in one rename, so that nobody ever reads half of it or before it is shut.
        rotate: Make a new one in any case.

    Raises:
        ConfigError: If the file holds no user's seed.
        MissingExtraError: If the package ``nkeys`` is not installed.
    """
    if rotate or not path.exists():
        write_secret(path, new_seed() + b"\n")
    return public(path)


def new_seed() -> bytes:
    """Return a new user's seed, as text of 58 characters.

    Raises:
        MissingExtraError: If the package ``nkeys`` is not installed.
    """
    try:
        import nkeys  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing() from error
    return bytes(nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_USER))


def public(path: Path) -> str:
    """Return the public key of the seed in ``path``.

    Raises:
        ConfigError: If the file holds no user's seed.
        MissingExtraError: If the package ``nkeys`` is not installed.
    """
    try:
        import nkeys  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing() from error
    pair = None
    try:
        seed = path.read_bytes().strip()
        prefix, raw = nkeys.decode_seed(seed)
        # the library does not look at the checksum
        if prefix != nkeys.PREFIX_BYTE_USER or nkeys.encode_seed(raw, prefix) != seed:
            raise ValueError  # noqa: TRY301 - said below, without the seed
        pair = nkeys.from_seed(bytearray(seed))
        return str(pair.public_key.decode())
    except (nkeys.NkeysError, ValueError, OSError):
        # "from None": the cause may hold the seed
        message = f"{path} holds no seed of a user: remove it and run `callboard nats config` again"
        raise ConfigError(message) from None
    finally:
        if pair is not None:
            pair.wipe()


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, in one rename; its folder is made likewise."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    temporary.replace(path)


def need() -> None:
    """Look whether keys can be made at all.

    Raises:
        MissingExtraError: If the package ``nkeys`` is not installed.
    """
    try:
        import nkeys  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise missing() from error


def missing() -> MissingExtraError:
    """Return the error for a machine without the extra."""
    return MissingExtraError("keys and certificates need two more packages: pip install 'callboard[security]'")
