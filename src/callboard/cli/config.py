"""``callboard config``."""

from __future__ import annotations

import click

from callboard.cli.output import emit, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session


@click.group("config")
def command() -> None:
    """Look at the settings."""


@command.command(
    "show", epilog=example("callboard config show --origin", "CALLBOARD_WORKER__CONCURRENCY=16 callboard config show")
)
@click.argument("prefix", default="")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@json_option
@global_options
@pass_session
def show(session: Session, /, prefix: str, *, origin: bool) -> None:
    """Show every setting, or those whose key begins with PREFIX. Secrets are hidden."""
    from callboard.agents.settings import AgentSettings

    settings = session.settings()
    lines = [line for line in [*settings.shown(), *AgentSettings.shown(settings)] if line.key.startswith(prefix)]
    if session.json:
        emit([{"key": line.key, "value": line.value, "origin": line.origin} for line in lines])
    elif origin:
        table([(x.key, x.value, x.origin) for x in lines], head=("KEY", "VALUE", "ORIGIN"), empty="no such setting")
    else:
        table([(x.key, x.value) for x in lines], head=("KEY", "VALUE"), empty="no such setting")
