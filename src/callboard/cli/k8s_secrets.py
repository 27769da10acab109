"""What ``callboard nats config`` wrote, as Secrets: one for each user's pods, and two for the servers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final

from callboard.cli.k8s_pod import Manifest, labels
from callboard.runtime.errors import ConfigError

if TYPE_CHECKING:
    from callboard.runtime.security.folder import Folder

# People and programs outside get their files by hand.
ROLES: Final = frozenset({"worker", "host", "registry", "operator"})
SERVER: Final = "nats"


def secrets(folder: Folder, *, namespace: str) -> list[Manifest]:
    """Return the Secrets that the manifests and the chart's values refer to.

    One certificate serves all servers, because the chart mounts one Secret into all of them: it is issued here, by the
    authority of the folder, for the addresses of all.

    Args:
        folder: Made by ``callboard nats config --tls``.
        namespace: Where they go.

    Raises:
        ConfigError: If the folder was made without TLS, or a file is missing.
    """
    from callboard.runtime.security.plan import MAIN

    plan = folder.plan()
    if not plan.has_tls:
        message = f"{folder.path} was made without certificates: run `callboard nats config --tls --out {folder.path}`"
        raise ConfigError(message)
    tls = folder.path / "tls"
    hosts = tuple(server.host for server in plan.servers)
    # by localhost a person comes in through `kubectl port-forward`
    names = dict.fromkeys((*hosts, f"nats.{namespace}.svc.cluster.local", "localhost"))
    certificate, key = folder.authority.issue(SERVER, hosts=tuple(names))
    found = [
        _secret("nats-accounts", namespace, {"accounts.conf": folder.path / "accounts.conf"}),
        _secret("nats-tls", namespace, {"ca.crt": tls / "ca.pem", "tls.crt": certificate, "tls.key": key}),
    ]
    for user in plan.users:
        if user.role in ROLES:
            stem = tls / f"{MAIN}.{user.name}"
            files = {
                "seed": folder.path / "users" / MAIN / user.name / "seed",
                "ca.crt": tls / "ca.pem",
                "tls.crt": stem.with_name(f"{stem.name}.pem"),
                "tls.key": stem.with_name(f"{stem.name}.key"),
            }
            found.append(_secret(f"callboard-{user.name}", namespace, files))
    return found


def _secret(name: str, namespace: str, files: dict[str, Path]) -> Manifest:
    try:
        data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    except OSError as error:
        message = f"{error.filename} cannot be read ({error.strerror}): run `callboard nats config` again"
        raise ConfigError(message) from error
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels("secret", name)},
        "type": "Opaque",
        "data": data,
    }
