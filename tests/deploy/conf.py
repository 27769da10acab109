"""The files of ``deploy/nats``: checked by the server itself, and made to stand on this machine."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from callboard.cli import k8s_secrets
from callboard.runtime.security.folder import Folder
from tests.support.server import find_binary

ROOT = Path(__file__).parents[2]
NATS = ROOT / "deploy" / "nats"
PLAIN = ("single", "cluster-1", "cluster-2", "cluster-3", "hub", "leaf")


def check(path: Path) -> str:
    """Return what ``nats-server -t`` says against a file, "" when it takes it."""
    binary = find_binary()
    assert binary is not None, "no nats-server: set CALLBOARD_NATS_SERVER"
    done = subprocess.run([binary, "-t", "-c", str(path)], capture_output=True, text=True, check=False)
    said = done.stderr + done.stdout
    return "" if done.returncode == 0 and "is valid" in said else said


def here(text: str, folder: Path, *, addresses: Mapping[str, str]) -> str:
    """Return a configuration for this machine: its store in ``folder``, monitoring on a free port, other addresses.

    Args:
        text: A file of ``deploy/nats``.
        folder: For the store.
        addresses: What to put in place of an address, exactly as it stands there.
    """
    for old, new in addresses.items():
        assert old in text, f"{old} is not in the file any more"
        text = text.replace(old, new)
    text = re.sub(r'store_dir: "[^"]+"', f"store_dir: {json.dumps(str(folder / 'js'))}", text)
    text = re.sub(r'^http: "127\.0\.0\.1:\d+"$', 'http: "127.0.0.1:-1"', text, flags=re.MULTILINE)
    text = re.sub(r"max_file: \w+", "max_file: 4GB", text)
    # host and port of clients are given on the command line
    return re.sub(r"^listen: .*$", "", text, flags=re.MULTILINE)


def chart_config(values: Mapping[str, Any], *, release: str = "nats", namespace: str = "callboard") -> dict[str, Any]:
    """Return what the official chart makes of the section ``config``, as its templates of 2.14 say.

    It knows what our values use and fails on more.
    """
    config = values["config"]
    assert set(config) <= {"cluster", "jetstream", "nats", "monitor", "merge"}, sorted(config)
    found: dict[str, Any] = {
        "server_name": "<< $SERVER_NAME >>",
        "lame_duck_grace_period": "10s",
        "lame_duck_duration": "30s",
        "pid_file": "/var/run/nats/nats.pid",
        "port": 4222,
        "http_port": 8222,
    }
    authority = f"{values['tlsCA'].get('dir', '/etc/nats-ca-cert')}/ca.crt" if values["tlsCA"]["enabled"] else None

    def tls(section: Mapping[str, Any], name: str) -> dict[str, Any]:
        assert section["enabled"]
        assert section["secretName"]
        own = f"/etc/nats-certs/{name}"
        made = {"cert_file": f"{own}/tls.crt", "key_file": f"{own}/tls.key"}
        return {**made, **({"ca_file": authority} if authority else {}), **section.get("merge", {})}

    found["tls"] = tls(config["nats"]["tls"], "nats")
    cluster = config["cluster"]
    headless = f"{release}-headless"
    if cluster["routeURLs"].get("useFQDN"):
        headless += f".{namespace}.svc.cluster.local"
    found["cluster"] = {
        "name": release,
        "port": 6222,
        "no_advertise": True,
        "routes": [f"tls://{release}-{number}.{headless}:6222" for number in range(cluster["replicas"])],
        "tls": tls(cluster["tls"], "cluster"),
        **cluster.get("merge", {}),
    }
    store = config["jetstream"]["fileStore"]
    found["jetstream"] = {
        "max_memory_store": f"<< {config['jetstream']['memoryStore']['maxSize']} >>",
        "store_dir": store.get("dir", "/data"),
        "max_file_store": f"<< {store.get('maxSize') or store['pvc']['size']} >>",
        **config["jetstream"].get("merge", {}),
    }
    return {**found, **config.get("merge", {})}


def chart_text(config: Mapping[str, Any]) -> str:
    """Return the chart's text of a configuration: what stands between ``<<`` and ``>>`` bare, includes as includes."""
    text = json.dumps(config, indent=2)
    text = re.sub(r'".*\$include": "(.*)",?', r"include \1;", text)
    return re.sub(r'"<<\s+(.*?)\s+>>"', r"\1", text)


def secret_files(folder: Folder, name: str) -> dict[str, bytes]:
    """Return what a Secret that ``callboard k8s secrets`` writes is mounted as."""
    for each in k8s_secrets.secrets(folder, namespace="callboard"):
        if each["metadata"]["name"] == name:
            return {key: base64.b64decode(data) for key, data in each["data"].items()}
    message = f"no Secret {name}"
    raise AssertionError(message)


def chart_pod(secrets: Folder, folder: Path, config: Mapping[str, Any]) -> str:
    """Return the text that the chart writes, with the Secrets' files in ``folder`` where it mounts them."""
    mounts = {
        "etc/nats-ca-cert": "nats-tls",
        "etc/nats-certs/nats": "nats-tls",
        "etc/nats-certs/cluster": "nats-tls",
        "etc/nats-accounts": "nats-accounts",
    }
    for place, name in mounts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for key, data in secret_files(secrets, name).items():
            (folder / place / key).write_bytes(data)
    (folder / "etc/nats-config").mkdir()
    (folder / "var/run/nats").mkdir(parents=True)
    return re.sub(r'"(/(?:etc|data|var)\b)', lambda found: f'"{folder}{found[1]}', chart_text(config))


def values() -> dict[str, Any]:
    """Return our values for the chart."""
    read: dict[str, Any] = yaml.safe_load((NATS / "values.yaml").read_text("utf-8"))
    return read
