"""What every command shares: the global options, the settings, one connection, and running on a loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from callboard.runtime.bus.base import Bus
    from callboard.runtime.config import Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# A person waits for a command; a worker may wait longer for its broker.
COMMAND_CONNECT_S = 3.0
# An election among servers takes up to ten.
ELECTION_S = 12.0
# Of fewer servers none may be away anyway.
MAJORITY_OF = 3


class Session:
    """The global options of one call, and what follows from them.

    Attributes:
        nats: ``--nats``, or None.
        files: ``--config``, in order.
        debug: Whether errors show their traceback.
        json: Whether the command writes JSON only.
        names: Names of the servers of this folder's cluster, by address.
    """

    def __init__(self) -> None:
        self.nats: str | None = None
        self.files: tuple[Path, ...] = ()
        self.debug = False
        self.json = False
        self.names: dict[str, str] = {}
        self._urls = ""

    @property
    def has_cluster(self) -> bool:
        """Whether the settings name so many servers that some may be away."""
        return len(self._addresses) >= MAJORITY_OF

    @property
    def patience_s(self) -> float:
        """How long a write may wait for the broker: where there are several servers, for an election."""
        from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S

        return ELECTION_S if self.has_cluster else DEFAULT_TIMEOUT_S

    @property
    def _addresses(self) -> list[str]:
        return [url.strip() for url in self._urls.split(",") if url.strip()]

    def missing(self) -> str:
        """Say which servers of a cluster are away, when so many are that it can store nothing; else "".

        Takes up to a second.
        """
        if not self.has_cluster:
            return ""
        import asyncio

        from callboard.runtime.bus import muster

        found = asyncio.run(muster.look(self._addresses, names=self.names))
        return "" if muster.has_majority(found) else muster.explain(found)

    def settings(self, **flags: object) -> Settings:
        """Load the settings; ``flags`` are dotted keys with ``__`` for the dot, None counts as not given.

        When no address was given anywhere and a server of this folder is running, its address is taken, or all
        addresses of a cluster.

        Raises:
            ConfigError: If a setting is wrong.
        """
        from callboard.runtime.config import Settings

        given = {key.replace("__", "."): value for key, value in flags.items()}
        given["nats.url"] = self.nats
        settings = Settings.load(file=self.files or None, flags=given)
        self._urls = settings.nats.url
        if settings.origins()["nats.url"] != "default":
            return settings
        from callboard.runtime.server_folder import running

        here = running(settings.server.data_dir)
        if here is None:
            return settings
        found: dict[str, object] = {"nats.url": here.url}
        if here.members:
            self.names = {member.url: member.name for member in here.members}
            if settings.origins()["topology.replicas"] == "default":
                # the cluster that `up` runs here has its streams on every server
                found["topology.replicas"] = len(here.members)
        self._urls = here.url
        return Settings.load(file=self.files or None, flags=given, here=found)

    def command_settings(self) -> Settings:
        """Return the settings with the patience of a person: three seconds to connect, unless it was set.

        Raises:
            ConfigError: If a setting is wrong.
        """
        settings = self.settings()
        if settings.origins()["nats.connect_deadline_s"] != "default":
            return settings
        nats = settings.nats.model_copy(update={"connect_deadline_s": COMMAND_CONNECT_S})
        return settings.model_copy(update={"nats": nats})

    @asynccontextmanager
    async def bus(self, name: str) -> AsyncIterator[Bus]:
        """Connect for the time of one command.

        Raises:
            BusConnectError: If there is no server.
            BusAuthError: If it refused us.
        """
        from callboard.runtime.host import connector

        bus = await connector(await self._patient(self.command_settings()))(f"cli-{name}")
        try:
            yield bus
        finally:
            await bus.close()

    async def _patient(self, settings: Settings) -> Settings:
        """Return settings that wait for an election, when enough servers of a cluster are there to hold one."""
        from callboard.runtime.bus import muster

        if not self.has_cluster or settings.origins()["nats.connect_deadline_s"] != "default":
            return settings
        if not muster.has_majority(await muster.look(self._addresses)):
            return settings
        nats = settings.nats.model_copy(update={"connect_deadline_s": ELECTION_S})
        return settings.model_copy(update={"nats": nats})

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on a loop of its own; Ctrl-C cancels it."""
        # 25 ms that `--help` does not need
        import asyncio

        return asyncio.run(work)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:  # noqa: ANN401 - click's values
        if value not in (None, (), False):
            setattr(ctx.ensure_object(Session), name, value)
        return value

    return callback


def global_options(command: F) -> F:
    """Add ``--nats``, ``--config`` and ``--debug``; they may stand before or after the command's name."""
    options = (
        click.option(
            "--nats", metavar="URL", expose_value=False, callback=_keep("nats"), help="Server, nats://host:4222."
        ),
        click.option(
            "--config",
            metavar="FILE",
            multiple=True,
            expose_value=False,
            type=click.Path(path_type=Path, dir_okay=False),
            callback=_keep("files"),
            help="Configuration file; may be repeated, later ones win.  [default: callboard.yaml]",
        ),
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=_keep("debug"), help="Show tracebacks of errors."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """Add ``--json``: nothing but JSON on standard output, in a shape that stays."""
    return click.option(
        "--json", "json_", is_flag=True, expose_value=False, callback=_keep("json"), help="Write JSON only."
    )(command)


def example(*lines: str) -> str:
    """Return the epilog that shows how a command is called; each line stays a line."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
