"""What a folder of server configuration is made from: servers, pools, hosts and tenants, kept in ``callboard.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.errors import ConfigError, NotFoundError
from callboard.runtime.security.role import ANY, User

MAIN = "callboard"
"""The account of a deployment without tenants, and of its own work with them."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
GIB, MIB = 1 << 30, 1 << 20
# The declared streams and room for a few of the tenant's own.
DEFAULT_STREAMS = 24


class Server(Struct, frozen=True, kw_only=True):
    """One nats-server of the deployment.

    Attributes:
        host: Where clients and its neighbours reach it.
        port: For clients.
        cluster_port: For its neighbours.
        http_port: For monitoring, on loopback only.
    """

    name: str
    host: str
    port: int
    cluster_port: int
    http_port: int

    def at(self, port: int, *, host: str | None = None) -> str:
        """Return host and port as an address, of this server or of another ``host``."""
        name = self.host if host is None else host
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


class Tenant(Struct, frozen=True, kw_only=True):
    """An isolated account.

    Attributes:
        max_bytes: Room for its streams on disk; the streams are made to fit.
        max_memory_bytes: Room for its streams in memory.
        max_streams: Streams it may have.
        max_connections: Connections of all its users together.
        weight: Its part of the slots of workers that serve several tenants, relative to the others'.
        is_suspended: Its users are shut out; its streams stay.
    """

    name: str
    max_bytes: int = GIB
    max_memory_bytes: int = 64 * MIB
    max_streams: int = DEFAULT_STREAMS
    max_connections: int = 64
    weight: int = 1
    is_suspended: bool = False


class Plan(Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        pools: Workers' users; each name is the pool's.
        hosts: Users of workers that host actors.
        agents: Users of agents that no worker hosts.
        max_file_bytes: Room for all streams of one server.
        profile: ``durable`` syncs every write, ``fast`` every two minutes.
    """

    v: int = 1
    servers: tuple[Server, ...]
    has_tls: bool = False
    pools: tuple[User, ...] = ()
    hosts: tuple[User, ...] = ()
    agents: tuple[User, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    max_file_bytes: int = 8 * GIB
    profile: str = "durable"

    @property
    def users(self) -> tuple[User, ...]:
        """The users of each account."""
        pools = self.pools or (User(name="worker-default", role="worker", capabilities=(ANY,)),)
        hosts = self.hosts or (User(name="host-default", role="host", capabilities=(ANY,), types=(ANY,)),)
        return (
            User(name="submitter", role="submitter"),
            *pools,
            *hosts,
            *self.agents,
            User(name="registry", role="registry", types=("registry",)),
            User(name="auditor", role="auditor"),
            User(name="approver", role="approver"),
            User(name="operator", role="operator"),
        )

    @property
    def url(self) -> str:
        """The servers, as ``nats.url`` takes them."""
        scheme = "tls" if self.has_tls else "nats"
        return ",".join(f"{scheme}://{server.at(server.port)}" for server in self.servers)

    def tenant(self, name: str) -> Tenant:
        """Return a tenant.

        Raises:
            NotFoundError: If there is none of that name.
        """
        for tenant in self.tenants:
            if tenant.name == name:
                return tenant
        known = ", ".join(tenant.name for tenant in self.tenants) or "none"
        message = f"there is no tenant {name!r}; there are: {known}"
        raise NotFoundError(message)

    def with_tenant(self, tenant: Tenant) -> Plan:
        """Return the plan with ``tenant`` added, or in the place of the one of its name.

        Raises:
            InvalidNameError: If its name is no subject token.
            ConfigError: If that name is taken, or a limit is none.
        """
        subjects.check_name(tenant.name, what="tenant")
        if tenant.name == MAIN:
            message = f"{MAIN!r} is the account of the deployment itself: give the tenant another name"
            raise ConfigError(message)
        for limit in ("max_bytes", "max_memory_bytes", "max_streams", "max_connections", "weight"):
            if getattr(tenant, limit) < 1:
                message = f"{limit} must be at least 1"
                raise ConfigError(message)
        reserved = sum(each.max_bytes for each in self.tenants if each.name != tenant.name) + tenant.max_bytes
        if reserved > self.max_file_bytes:
            message = (
                f"the tenants together would reserve {reserved} bytes, a server has {self.max_file_bytes}: "
                "lower --max-bytes, or raise the room with `callboard nats config --max-file-bytes`"
            )
            raise ConfigError(message)
        names = [each.name for each in self.tenants]
        kept = [tenant if each.name == tenant.name else each for each in self.tenants]
        return msgspec.structs.replace(self, tenants=tuple(kept if tenant.name in names else [*kept, tenant]))

    def without_tenant(self, name: str) -> Plan:
        """Return the plan without the tenant.

        Raises:
            NotFoundError: If there is none of that name.
        """
        gone = self.tenant(name)
        return msgspec.structs.replace(self, tenants=tuple(each for each in self.tenants if each is not gone))


def read(folder: Path) -> Plan | None:
    """Return the plan that a folder was made from, None when nothing was made there.

    Raises:
        ConfigError: If the file is damaged.
    """
    file = folder / "callboard.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{file} cannot be read: {error}"
        raise ConfigError(message) from error


def unit(text: str, *, role: str) -> User:
    """Return the user that ``NAME``, ``NAME=a,b`` or, for a host, ``NAME=types/capabilities`` describes.

    A bare name serves (or hosts) everything. The lists are of capabilities for a worker, of types for an agent.

    Raises:
        InvalidNameError: If a name is no subject token.
    """
    name, has_list, listed = text.partition("=")
    subjects.check_name(name, what=role)
    first, _, second = listed.partition("/")
    names = tuple(each.strip() for each in first.split(",") if each.strip()) if has_list else (ANY,)
    further = tuple(each.strip() for each in second.split(",") if each.strip()) if has_list else (ANY,)
    user = User(name=f"{role}-{name}", role=role)
    if role == "worker":
        return msgspec.structs.replace(user, capabilities=names)
    return msgspec.structs.replace(user, types=names, capabilities=further if role == "host" else ())


def layout(count: int, *, hosts: tuple[str, ...], port: int, cluster_port: int, http_port: int) -> tuple[Server, ...]:
    """Return ``count`` servers; those that share a host take ports next to each other.

    Raises:
        ConfigError: If the number of hosts fits neither one nor all servers.
    """
    if len(hosts) not in {1, count}:
        message = f"give one --address for all {count} servers or one for each, not {len(hosts)}"
        raise ConfigError(message)
    step = 0 if len(set(hosts)) == count and count > 1 else 1
    return tuple(
        Server(
            name=f"cb-{number + 1}",
            host=hosts[number % len(hosts)],
            port=port + number * step,
            cluster_port=cluster_port + number * step,
            http_port=http_port + number * step,
        )
        for number in range(count)
    )
