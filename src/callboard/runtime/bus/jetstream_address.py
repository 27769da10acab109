"""Where the servers are and who we are there; secrets are kept away from everything that prints itself."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import unquote, urlsplit

from callboard.runtime.errors import BusAuthError, BusConnectError, CallboardError, ConfigError, MissingExtraError

_PORT = 4222
_SEED = re.compile(r"SU[A-Z2-7]{56}")
_SCHEMES = {"nats", "tls", "ws", "wss"}
# The first that fits; our own certificate's troubles come as alerts of the server.
_TLS_ADVICE = (
    ("alert certificate expired", "our certificate has expired: renew nats.tls_cert_file"),
    ("alert certificate required", "it wants a certificate of ours: set nats.tls_cert_file and nats.tls_key_file"),
    (
        "alert unknown ca",
        "it does not know the authority of our certificate: set nats.tls_cert_file to one that its authority signed",
    ),
    ("alert bad certificate", "it does not accept our certificate: set nats.tls_cert_file to one of its authority"),
    (
        "certificate has expired",
        (
            "its certificate has expired: renew it and reload the server (`callboard nats config --rotate`, then "
            "`callboard nats reload`)"
        ),
    ),
    ("mismatch, certificate is not valid for", "its certificate is for another name: use one of its names in nats.url"),
    (
        "certificate verify failed",
        "its certificate is of an authority that we do not trust: set nats.tls_ca_file to that authority's",
    ),
    ("[ssl", "the TLS handshake failed: is it a TLS server, and of this decade?"),
)


class Credentials(TypedDict, total=False):
    """Who we are and how the link is secured; all optional.

    Attributes:
        user: Name of the user.
        password: Of ``user``.
        token: In place of user and password.
        nkey_seed: Seed of an nkey, as text.
        creds: Path of a ``.creds`` file.
        tls_ca: Path of the authority's certificate, in place of the system's.
        tls_cert: Path of our certificate, for servers that verify clients.
        tls_key: Path of its key.
        tls_hostname: Name to expect in the server's certificate.
    """

    user: str | None
    password: str | None
    token: str | None
    nkey_seed: str | None
    creds: str | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    tls_hostname: str | None


class Address:
    """Servers and credentials, taken apart so that no URL with a password is kept anywhere."""

    __slots__ = ("_files", "_options", "_secrets", "urls", "wants_tls")

    def __init__(self, servers: str | Sequence[str], **who: Unpack[Credentials]) -> None:
        """Take what a configuration says.

        Args:
            servers: One URL, several, or several in one text with commas; ``user:password@`` and ``token@`` are read.
            who: Goes before what a URL says.

        Raises:
            ConfigError: If a URL is malformed, the URLs disagree about who we are, or a seed or a file is not usable.
        """
        user, password, token = who.get("user"), who.get("password"), who.get("token")
        listed = servers.split(",") if isinstance(servers, str) else list(servers)
        parsed = [_parse(url.strip()) for url in listed if url.strip()]
        if not parsed:
            message = "no server to connect to: give a URL like nats://127.0.0.1:4222"
            raise ConfigError(message)
        self.urls = [url for url, _, _ in parsed]
        named = {(name, secret) for _, name, secret in parsed if name is not None}
        if len(named) > 1:
            message = "the server URLs name different users: give user and password apart from the URLs"
            raise ConfigError(message)
        for name, secret in named:
            if secret is None:
                token = token or name
            else:
                user, password = user or name, password or secret
        # Who names an authority or shows a certificate means it: no server may talk us out of it.
        self.wants_tls = any(url.startswith(("tls:", "wss:")) for url in self.urls) or any(
            who.get(name) is not None for name in ("tls_ca", "tls_cert")
        )
        self._options: dict[str, Any] = {}
        secrets = {"user": user, "password": password, "token": token}
        self._secrets = {key: _hidden(value) for key, value in secrets.items() if value is not None}
        _check_files(who.get("nkey_seed"), who.get("creds"))
        renamed = {"nkeys_seed_str": who.get("nkey_seed"), "user_credentials": who.get("creds")}
        self._options |= {key: value for key, value in renamed.items() if value is not None}
        self._add_tls(who.get("tls_ca"), who.get("tls_cert"), who.get("tls_key"), who.get("tls_hostname"))

    def __repr__(self) -> str:
        return f"<servers {self.text}>"

    @property
    def text(self) -> str:
        """The servers, without credentials."""
        return ", ".join(self.urls)

    def options(self, guard: Callable[[], None]) -> dict[str, Any]:
        """Return what the client needs to know; it calls ``guard`` each time before it says who we are.

        Secrets are handed over as functions, so that they show up in no repr of the client or its options. Where TLS is
        asked for, there always is one: the client asks for a token beside any other way to log in, or in place of none,
        and an empty one counts as none.
        """

        def guarded(secret: Callable[[], str]) -> Callable[[], str]:
            def tell() -> str:
                guard()
                return secret()

            return tell

        secrets = {"token": _hidden("")} | self._secrets if self.wants_tls else self._secrets
        return self._options | {key: guarded(secret) for key, secret in secrets.items()}

    def refresh(self) -> None:
        """Read the TLS files again, for the next connection; what cannot be read leaves things as they are."""
        context = self._options.get("tls")
        if context is not None:
            with suppress(OSError, ValueError):
                _load(context, *self._files)

    def _add_tls(self, ca: str | None, cert: str | None, key: str | None, hostname: str | None) -> None:
        self._files = (ca, cert, key)
        if ca is not None or cert is not None:
            try:
                context = ssl.create_default_context(cafile=ca)
                _load(context, None, cert, key)
            except (OSError, ValueError) as error:
                message = f"the TLS files cannot be used: {error}"
                raise ConfigError(message) from error
            self._options["tls"] = context
        if hostname is not None:
            self._options["tls_hostname"] = hostname


def tls_advice(text: str) -> str | None:
    """Return what to do about a failed TLS handshake, by the text of its error; None when it was something else."""
    return next((advice for sign, advice in _TLS_ADVICE if sign in text.lower()), None)


def is_full(error: BaseException | None) -> bool:
    """Return whether a server refused a connection because it, or the account, has as many as it may have."""
    text = str(error).lower()
    return "maximum" in text and "connections exceeded" in text


def dial_error(servers: str, error: BaseException | None, deadline_s: float, *, is_refused: bool) -> CallboardError:
    """Return what kept us from connecting, and what to do about it."""
    advice = tls_advice(str(error))
    if is_full(error):
        text = f"the server at {servers} lets no further connection in ({error}): close some, or have somebody raise "
        if "account" not in str(error).lower():
            return BusConnectError(f"{text}`max_connections` in its configuration")
        return BusAuthError(f"{text}the limit, a tenant's with `callboard tenant create NAME --max-connections NUMBER`")
    if advice is not None:
        return BusAuthError(f"no secure connection to the server at {servers}: {advice} ({error})")
    if is_refused:
        return BusAuthError(f"the server at {servers} refused the credentials: check user, password, token or nkey")
    if isinstance(error, ImportError):
        return MissingExtraError("nkeys and .creds files need one more package: pip install 'callboard[nkeys]'")
    if "secure connection required" in str(error):
        text = f"the server at {servers} does not speak TLS, as its URL demands ({error}); nothing was sent to it: "
        return BusConnectError(f"{text}set up TLS there, or write nats:// where others may read along")
    return BusConnectError(
        f"no NATS server at {servers} answered within {deadline_s:g} s ({str(error or '') or 'no answer'}): start one "
        "with `callboard up`, or check the address"
    )


def _load(context: ssl.SSLContext, ca: str | None, cert: str | None, key: str | None) -> None:
    if ca is not None:
        context.load_verify_locations(ca)
    if cert is not None:
        context.load_cert_chain(cert, key)


def _check_files(seed: str | None, creds: str | None) -> None:
    """Refuse what the client would take for a server that does not answer."""
    if seed is not None and not _SEED.fullmatch(seed.strip()):
        message = "the nkey seed is not usable: that of a user has 58 characters and begins with SU"
        raise ConfigError(message)
    if creds is not None:
        try:
            Path(creds).read_bytes()
        except OSError as error:
            message = f"the credentials file {creds} cannot be read: {error.strerror}"
            raise ConfigError(message) from error


def _hidden(secret: str) -> Callable[[], str]:
    return lambda: secret


def _parse(url: str) -> tuple[str, str | None, str | None]:
    """Return the URL without its user part, the user and the password (None for a token)."""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        # The cause would print the URL, and with it a password.
        message = "a server URL is malformed: give one like nats://127.0.0.1:4222"
        raise ConfigError(message) from error.__cause__
    if parts.scheme not in _SCHEMES or not host:
        message = f"server URL of {host or 'no host'} is not usable: it begins with nats://, tls://, ws:// or wss://"
        raise ConfigError(message)
    host = f"[{host}]" if ":" in host else host
    clean = f"{parts.scheme}://{host}" + (f":{port or _PORT}" if port or parts.scheme in {"nats", "tls"} else "")
    name = unquote(parts.username) if parts.username else None
    return clean + (parts.path if parts.scheme.startswith("ws") else ""), name, _secret(parts.password)


def _secret(text: str | None) -> str | None:
    return None if text is None else unquote(text)
