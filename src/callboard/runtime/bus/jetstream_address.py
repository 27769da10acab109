"""Where the servers are and who we are there; secrets are kept away from everything that prints itself."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from callboard.runtime.errors import ConfigError

_PORT = 4222
_SCHEMES = {"nats", "tls", "ws", "wss"}


class Address:
    """Servers and credentials, taken apart so that no URL with a password is kept anywhere."""

    __slots__ = ("options", "urls")

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        nkey_seed: str | None = None,
        creds: str | None = None,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_hostname: str | None = None,
    ) -> None:
        """Take what a configuration says.

        Args:
            servers: One URL, several, or several in one text with commas; ``user:password@`` and ``token@`` are read.
            user: Goes before what a URL says, as do ``password`` and ``token``.
            password: Of ``user``.
            token: In place of user and password.
            nkey_seed: Seed of an nkey, as text.
            creds: Path of a ``.creds`` file.
            tls_ca: Path of the authority's certificate, in place of the system's.
            tls_cert: Path of our certificate, for servers that verify clients.
            tls_key: Path of its key.
            tls_hostname: Name to expect in the server's certificate.

        Raises:
            ConfigError: If a URL is malformed, or the URLs disagree about who we are.
        """
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
        self.options: dict[str, Any] = {}
        # As functions, they show up in no repr of the client or its options.
        for key, value in (("user", user), ("password", password), ("token", token)):
            if value is not None:
                self.options[key] = _hidden(value)
        if nkey_seed is not None:
            self.options["nkeys_seed_str"] = nkey_seed
        if creds is not None:
            self.options["user_credentials"] = creds
        self._add_tls(tls_ca, tls_cert, tls_key, tls_hostname)

    def __repr__(self) -> str:
        return f"<servers {self.text}>"

    @property
    def text(self) -> str:
        """The servers, without credentials."""
        return ", ".join(self.urls)

    def _add_tls(self, ca: str | None, cert: str | None, key: str | None, hostname: str | None) -> None:
        if ca is not None or cert is not None:
            try:
                context = ssl.create_default_context(cafile=ca)
                if cert is not None:
                    context.load_cert_chain(cert, key)
            except (OSError, ValueError) as error:
                message = f"the TLS files cannot be used: {error}"
                raise ConfigError(message) from error
            self.options["tls"] = context
        if hostname is not None:
            self.options["tls_hostname"] = hostname


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
