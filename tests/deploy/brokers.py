"""The three servers of ``prod-ha`` on loopback: the chart's configuration of our values, users and certificates."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

from callboard.cli import k8s_secrets
from callboard.runtime.bus.base import Bus
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusError
from callboard.runtime.host import connector
from callboard.runtime.security import plan as plans
from callboard.runtime.security.folder import Folder
from tests.deploy import conf
from tests.deploy.pod import Secrets
from tests.support.eventually import eventually
from tests.support.mesh import free_ports
from tests.support.server import NatsServer

_JOIN_S = 60.0


class Brokers:
    """Three servers made from ``deploy/nats/values.yaml``; the Secrets are those of ``callboard k8s secrets``.

    Attributes:
        url: What pods of this machine use in place of the cluster's names.
        secrets: By name, for pods; with a key of a model's provider.
    """

    def __init__(self, folder: Path) -> None:
        ports = list(free_ports(9))
        clients, routes, http = ports[:3], ports[3:6], ports[6:]
        self._folder = Folder(folder / "nats")
        servers = tuple(
            plans.Server(name=f"nats-{n}", host="127.0.0.1", port=clients[n], cluster_port=routes[n], http_port=http[n])
            for n in range(3)
        )
        pools = (plans.unit("default=hello", role="worker"),)
        hosts = (plans.unit("agents", role="host"),)
        self._folder.write(plans.Plan(servers=servers, has_tls=True, pools=pools, hosts=hosts))
        self.url = self._folder.plan().url
        self.secrets: Secrets = {
            each["metadata"]["name"]: each["data"] for each in k8s_secrets.secrets(self._folder, namespace="callboard")
        }
        self.secrets["callboard-providers"] = {"openai": base64.b64encode(b"no key").decode()}
        self._servers = [self._server(folder / f"nats-{n}", servers[n], servers) for n in range(3)]

    async def start(self) -> None:
        """Start them and wait until they are a cluster that answers."""
        await asyncio.gather(*(server.start() for server in self._servers))

        async def is_led() -> bool:
            try:
                bus = await self.bus("operator")
            except BusError:
                return False
            try:
                _ = await bus.stream_info("CB_WORK")
            except BusError:
                return False
            finally:
                await bus.close()
            return True

        await eventually(is_led, within_s=_JOIN_S, every_s=0.2, what="three servers have a leader")

    async def bus(self, user: str) -> Bus:
        """Connect as one of the users who are no pods."""
        settings = Settings.load(file=self._folder.settings_file(plans.MAIN, user), env={})
        return await connector(settings)("rehearsal")

    def stop(self) -> None:
        """End them."""
        for server in self._servers:
            server.stop()

    def _server(self, folder: Path, own: plans.Server, all_of_them: tuple[plans.Server, ...]) -> NatsServer:
        config = conf.chart_config(conf.values())
        config["server_name"] = own.name
        config["host"] = "127.0.0.1"
        config["http_port"] = own.http_port
        del config["port"]  # it stands on the command line
        cluster = config["cluster"] | {"port": own.cluster_port, "host": "127.0.0.1"}
        cluster["routes"] = [f"tls://127.0.0.1:{each.cluster_port}" for each in all_of_them]
        config["cluster"] = cluster
        config["jetstream"]["max_file_store"] = "<< 20GB >>"
        text = conf.chart_pod(self._folder, folder, config).strip()
        server = NatsServer(folder / "etc/nats-config", jetstream=False, more=re.sub(r"\A\{|\}\Z", "", text))
        server.port = own.port
        return server
