"""The text of a server's configuration, and a look at whether one is safe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from callboard.runtime.security.plan import LOOPBACK, MAIN, Plan, Server, Tenant
from callboard.runtime.security.role import User, permissions

ACCOUNTS_FILE = "accounts.conf"
_MAX_PAYLOAD_BYTES = 1 << 20
_MAX_MEMORY_BYTES = 512 << 20
_SYNC = {"durable": "always", "fast": '"2m"'}
# `http: 8222` and `http_port: 8222` listen on every address, as does a listen without a host.
_MONITOR = re.compile(r"""^\s*(https?|https?_port|monitor_port)\s*[:=\s]\s*["']?([^"'\s#}]+)""", re.MULTILINE)


def server_text(plan: Plan, server: Server, *, folder: Path, route_secret: str) -> str:
    """Return the configuration file of one server; the users stand in a file beside that all servers share."""
    own = folder / server.name
    tls = folder / "tls"
    listen = server.host if server.host in LOOPBACK else "0.0.0.0"  # noqa: S104 - only with TLS, see Folder.write
    secured = _tls(tls, server, verify=True) if plan.has_tls else []
    return "\n".join(
        [
            "# Written by `callboard nats config`; changes are lost at its next run.",
            f"server_name: {_quoted(server.name)}",
            f"listen: {_quoted(server.at(server.port, host=listen))}",
            "# monitoring answers anybody: loopback only",
            f"http: {_quoted(f'127.0.0.1:{server.http_port}')}",
            f"pid_file: {_quoted(own / 'nats.pid')}",
            f"log_file: {_quoted(own / 'nats.log')}",
            "logfile_size_limit: 10MB",
            "logfile_max_num: 3",
            f"max_payload: {_MAX_PAYLOAD_BYTES}",
            "max_control_line: 4KB",
            "max_connections: 10000",
            "max_pending: 64MB",
            'write_deadline: "5s"',
            "jetstream {",
            f"  store_dir: {_quoted(own / 'jetstream')}",
            f"  max_mem: {_MAX_MEMORY_BYTES}",
            f"  max_file: {plan.max_file_bytes}",
            f"  sync_interval: {_SYNC[plan.profile]}",
            "  limits {",
            '    batch { max_inflight_per_stream: 50, max_inflight_total: 1000, max_msgs: 1000, timeout: "10s" }',
            "  }",
            "}",
            *(["tls {", *secured, "}"] if secured else []),
            *_cluster(plan, server, listen=listen, secured=secured, secret=route_secret),
            f"include {_quoted('../' + ACCOUNTS_FILE)}",
            "",
        ]
    )


def accounts_text(plan: Plan, keys: Mapping[tuple[str, str], str]) -> str:
    """Return the accounts and their users; ``keys`` are public keys by account and user."""
    lines = ["# Written by `callboard nats config` and `callboard tenant`; changes are lost.", "accounts {"]
    lines += _account(MAIN, None, plan.users, keys)
    for tenant in plan.tenants:
        lines += _account(tenant.name, tenant, () if tenant.is_suspended else plan.users, keys)
    return "\n".join([*lines, "}", ""])


def problems(text: str) -> list[str]:
    """Return what is unsafe about a server's configuration, a sentence each that says what to do; empty when fine.

    It reads one text and follows no ``include``.
    """
    found = []
    for name, value in _MONITOR.findall(text):
        host = value.rsplit(":", 1)[0] if ":" in value else ""
        if host.strip("[]") not in LOOPBACK:
            where = f"on {host}" if host else "on every address"
            found.append(
                f'{name}: monitoring {where} answers anybody who asks: write http: "127.0.0.1:<port>", and let a '
                "network policy or a proxy decide who gets there"
            )
    if re.search(r"^\s*no_auth_user\s*[:=\s]", text, re.MULTILINE):
        found.append("no_auth_user lets everybody in without credentials: remove it")
    listen = re.search(r"""^\s*listen\s*[:=\s]\s*["']?([^"'\s#]+)""", text, re.MULTILINE)
    host = listen[1].rsplit(":", 1)[0] if listen and ":" in listen[1] else "0.0.0.0"  # noqa: S104 - the server's default
    if host.strip("[]") not in LOOPBACK and not re.search(r"^\s*tls\s*[:=\s]*\{", text, re.MULTILINE):
        found.append(f"clients on {host} would talk in the clear: switch TLS on (callboard nats config --tls)")
    return found


def _account(name: str, tenant: Tenant | None, users: Sequence[User], keys: Mapping[tuple[str, str], str]) -> list[str]:
    store = "enabled"
    if tenant is not None:
        store = (
            f"{{ max_mem: {tenant.max_memory_bytes}, max_file: {tenant.max_bytes}, max_streams: {tenant.max_streams} }}"
        )
    lines = [f"  {_quoted(name)}: {{", f"    jetstream: {store}"]
    if tenant is not None:
        lines.append(f"    limits: {{ max_connections: {tenant.max_connections} }}")
    lines.append("    users: [")
    for user in users:
        lines += _user(user, keys[name, user.name])
    return [*lines, "    ]", "  }"]


def _user(user: User, key: str) -> list[str]:
    may = permissions(user)
    return [
        f"      # {user.name}",
        f"      {{ nkey: {key}, permissions: {{",
        f"        publish: {{ allow: {_list(may.publish)}",
        *([f"          deny: {_list(may.deny_publish)}"] if may.deny_publish else []),
        "        }",
        f"        subscribe: {{ allow: {_list(may.subscribe)} }}",
        "      } }",
    ]


def _cluster(plan: Plan, server: Server, *, listen: str, secured: Sequence[str], secret: str) -> list[str]:
    others = [each for each in plan.servers if each is not server]
    if not others:
        return []
    routes = ", ".join(_quoted(f"nats://{each.at(each.cluster_port)}") for each in others)
    login = f"  authorization {{ user: callboard-route, password: {_quoted(secret)}, timeout: 5 }}"
    return [
        "cluster {",
        "  name: callboard",
        f"  listen: {_quoted(server.at(server.cluster_port, host=listen))}",
        login,
        f"  routes: [{routes.replace('nats://', f'nats://callboard-route:{secret}@')}]",
        *(["  tls {", *(f"  {line}" for line in secured), "  }"] if secured else []),
        "}",
    ]


def _tls(folder: Path, server: Server, *, verify: bool) -> list[str]:
    return [
        f"  cert_file: {_quoted(folder / f'{server.name}.pem')}",
        f"  key_file: {_quoted(folder / f'{server.name}.key')}",
        f"  ca_file: {_quoted(folder / 'ca.pem')}",
        f"  verify: {str(verify).lower()}",
        '  min_version: "1.2"',
        "  timeout: 5",
    ]


def _list(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(_quoted(subject) for subject in subjects) + "]"


def _quoted(value: object) -> str:
    """Quote for the server's format: inside double quotes a backslash escapes, other text stands as it is."""
    return json.dumps(str(value), ensure_ascii=False)
