"""``callboard agents types``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note, shorten, table
from callboard.cli.session import Session, example, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.catalog import Entry

_WIDTH = 60


@click.command("types", epilog=example("callboard agents types agents/", "callboard agents types @installed --json"))
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@json_option
@pass_session
def types(session: Session, /, modules: tuple[str, ...]) -> None:
    """Show the types of agents and actors in each MODULE: a folder, a .py file, a module, or @installed.

    MODEL is who answers, TOOLS what it may call. Needs no server. The code of the modules is run; a file of a folder
    that cannot be used is reported, and the others are shown.
    """
    from callboard.agents import catalog

    found = catalog.read(modules)
    if session.json:
        emit(found)
        return
    table(
        [_row(entry) for entry in found.entries],
        head=("TYPE", "MODEL", "TOOLS", "ANSWERS", "CAPABILITIES", "SOURCE", "ABOUT"),
        empty="no agent and no actor",
    )
    for each in found.skipped:
        note(f"{each.name} cannot be used and is left out:\n{each.message}")


def _row(entry: Entry) -> tuple[str, ...]:
    is_agent = entry.kind == "agent"
    return (
        entry.name,
        (",".join(entry.models) or "(default)") if is_agent else "-",
        ",".join(entry.tools) or "-",
        (entry.output or "text") if is_agent else ",".join(entry.messages),
        ",".join(entry.capabilities) or "-",
        entry.source,
        shorten(entry.about, _WIDTH),
    )
