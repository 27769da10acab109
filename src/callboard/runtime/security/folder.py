"""A folder of server configuration: written whole, checked by the server itself, and kept when it is written again."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from callboard.runtime import server_binary
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ConfigError, ServerStartError
from callboard.runtime.security import nkey, serverconf
from callboard.runtime.security import plan as plans
from callboard.runtime.security.plan import LOOPBACK, MAIN, Plan
from callboard.runtime.security.role import GUESTS, User, inbox

if TYPE_CHECKING:
    from callboard.runtime.security.certificate import Authority

if sys.platform != "win32":
    import fcntl

_CHECK_S = 20.0


class Folder:
    """What ``callboard nats config`` writes.

    ``callboard.json`` (the plan), ``accounts.conf`` (all users, public keys only), ``<server>/nats.conf``, ``tls/``,
    ``users/<account>/<user>/`` with ``seed``, ``settings.yaml`` and ``env``, and ``users/<user>.tenants.json`` for
    workers that serve all tenants.
    """

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use ``path``; nothing is read or written yet."""
        self.path = path.absolute()
        self._clock = clock

    @cached_property
    def authority(self) -> Authority:
        """The authority that signs the certificates.

        Raises:
            MissingExtraError: If the package ``cryptography`` is not installed.
        """
        try:
            from callboard.runtime.security.certificate import Authority  # noqa: PLC0415 - needs an extra
        except ImportError as error:
            raise nkey.missing() from error
        return Authority(self.path / "tls", clock=self._clock)

    def plan(self) -> Plan:
        """Return what the folder was made from.

        Raises:
            ConfigError: If nothing was made there, or the file is damaged.
        """
        found = plans.read(self.path)
        if found is None:
            message = f"{self.path} holds no configuration: make one with `callboard nats config --out {self.path}`"
            raise ConfigError(message)
        return found

    def settings_file(self, account: str, user: str) -> Path:
        """Return the file that ``--config`` takes to be a user."""
        return self._user_folder(account, user) / "settings.yaml"

    def config_file(self, server: str) -> Path:
        """Return the file that ``nats-server -c`` takes."""
        return self.path / server / "nats.conf"

    def pid_file(self, server: str) -> Path:
        """Return where a running server notes its process."""
        return self.path / server / "nats.pid"

    def write(self, plan: Plan, *, rotate: bool = False) -> None:
        """Write everything that follows from ``plan``; keys and authority that are there stay.

        Args:
            plan: What shall be.
            rotate: Make a new authority, new certificates and new seeds for all users.

        Raises:
            ConfigError: If the plan would send work over a network in the clear.
            ServerStartError: If the server refuses the outcome; the users' file is then as it was.
            MissingExtraError: If the packages for keys and certificates are not installed.
        """
        far = [server.host for server in plan.servers if server.host not in LOOPBACK]
        if far and not plan.has_tls:
            message = f"clients of {', '.join(far)} would send their work in the clear: add --tls"
            raise ConfigError(message)
        nkey.need()
        if plan.has_tls:
            _ = self.authority  # before anything is written: it may need a package
        self.path.mkdir(parents=True, exist_ok=True, mode=nkey.FOLDER_MODE)
        with self._locked():
            if plan.has_tls:
                self._certify(plan, rotate=rotate)
            secret = self._route_secret(rotate=rotate)
            keys = {
                (account, user.name): nkey.ensure(self._user_folder(account, user.name) / "seed", rotate=rotate)
                for account in _accounts(plan)
                for user in plan.users
            }
            for server in plan.servers:
                text = serverconf.server_text(plan, server, folder=self.path, route_secret=secret)
                nkey.write_secret(self.config_file(server.name), text.encode())
            for account in _accounts(plan):
                for user in plan.users:
                    self._introduce(plan, account, user)
            for user in plan.users:
                self._list_tenants(plan, user)
            self._replace_accounts(plan, serverconf.accounts_text(plan, keys))
            nkey.write_secret(self.path / "callboard.json", msgspec.json.format(msgspec.json.encode(plan), indent=2))

    def check(self, server: str) -> None:
        """Let the server itself read its configuration.

        Raises:
            ServerStartError: If it does not like it; with its words.
            ServerBinaryError: If there is no usable nats-server.
        """
        binary = server_binary.find().path
        done = subprocess.run(  # noqa: S603 - our own binary and our own file
            [binary, "-t", "-c", self.config_file(server)],
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            message = f"nats-server refuses {self.config_file(server)}: {said[-2000:]}"
            raise ServerStartError(message)

    def _replace_accounts(self, plan: Plan, text: str) -> None:
        file = self.path / serverconf.ACCOUNTS_FILE
        before = file.read_bytes() if file.exists() else None
        nkey.write_secret(file, text.encode())
        try:
            for server in plan.servers:
                self.check(server.name)
        except BaseException:
            if before is not None:
                nkey.write_secret(file, before)
            raise

    def _certify(self, plan: Plan, *, rotate: bool) -> None:
        is_new = self.authority.ensure(rotate=rotate)
        for server in plan.servers:
            hosts = (server.host, *(("localhost", "127.0.0.1") if server.host in LOOPBACK else ()))
            self.authority.issue(server.name, hosts=tuple(dict.fromkeys(hosts)), rotate=is_new)
        for account in _accounts(plan):
            for user in plan.users:
                self.authority.issue(f"{account}.{user.name}", rotate=is_new)

    def _route_secret(self, *, rotate: bool) -> str:
        file = self.path / "route.secret"
        if rotate or not file.exists():
            nkey.write_secret(file, secrets.token_hex(24).encode())
        return file.read_text("utf-8").strip()

    def _user_folder(self, account: str, user: str) -> Path:
        return self.path / "users" / account / user

    def _introduce(self, plan: Plan, account: str, user: User) -> None:
        """Write the settings of one user in both forms, ready for ``--config`` and for a process' environment."""
        folder = self._user_folder(account, user.name)
        nats = {"url": plan.url, "nkey_seed_file": str(folder / "seed"), "inbox_prefix": inbox(user.name)}
        if plan.has_tls:
            tls = self.authority.folder
            nats["tls_ca_file"] = str(tls / "ca.pem")
            nats["tls_cert_file"] = str(tls / f"{account}.{user.name}.pem")
            nats["tls_key_file"] = str(tls / f"{account}.{user.name}.key")
        settings: dict[str, dict[str, object]] = {"nats": dict(nats)}
        if user.role in GUESTS:
            settings["nats"]["is_guest"] = True
        if user.role in {"worker", "host", "registry"}:
            settings["worker"] = {"user": user.name}
            # only its own user may write every record and answer look-ups; hosts enter the agents of their types
            settings["registry"] = {"host": user.role == "registry"}
        if len(plan.servers) > 1:
            settings["topology"] = {"replicas": len(plan.servers)}
        head = (
            f"# Settings of the user {user.name} in the account {account}: callboard --config {folder}/settings.yaml\n"
        )
        nkey.write_secret(folder / "settings.yaml", (head + _yaml(settings)).encode())
        lines = [
            f"CALLBOARD_{section.upper()}__{key.upper()}={_plain(value)}"
            for section, values in settings.items()
            for key, value in values.items()
        ]
        nkey.write_secret(folder / "env", ("\n".join(lines) + "\n").encode())

    def _list_tenants(self, plan: Plan, user: User) -> None:
        """Write the list that ``worker start --tenants`` takes to be a user in every tenant's account."""
        if user.role not in {"worker", "host"}:
            return
        served = [
            {"name": tenant.name, "config": f"{tenant.name}/{user.name}/settings.yaml", "weight": tenant.weight}
            for tenant in plan.tenants
            if not tenant.is_suspended
        ]
        data = msgspec.json.format(msgspec.json.encode(served), indent=2)
        nkey.write_secret(self.path / "users" / f"{user.name}.tenants.json", data + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time write; waits."""
        with (self.path / ".lock").open("a+b") as handle:
            if sys.platform != "win32":
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _accounts(plan: Plan) -> tuple[str, ...]:
    return (MAIN, *(tenant.name for tenant in plan.tenants))


def _yaml(settings: Mapping[str, Mapping[str, object]]) -> str:
    """Return two levels of settings as YAML, whose texts and numbers JSON's are too."""
    lines = []
    for section, values in settings.items():
        lines += [f"{section}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    """Return a value as a variable carries it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
