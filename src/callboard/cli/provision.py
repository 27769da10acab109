"""``callboard provision``."""

from __future__ import annotations

import click

from callboard.cli.output import emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session


@click.command("provision", epilog=example("callboard provision --plan", "callboard provision --capability search"))
@click.option("--plan", "only_plan", is_flag=True, help="Show what would change; exit 1 if anything would.")
@click.option(
    "--capability", "capabilities", multiple=True, help="Make the consumers of this one too; may be repeated."
)
@click.option("--allow-destructive", is_flag=True, help="Allow changes that lose stored data.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, only_plan: bool, capabilities: tuple[str, ...], allow_destructive: bool) -> None:
    """Bring the broker's streams, buckets and consumers to what Callboard needs.

    Safe to run again and by many at once. Changes that would lose data are refused without --allow-destructive.
    """
    changes = session.run(
        _provision(session, only_plan=only_plan, capabilities=capabilities, allow_destructive=allow_destructive)
    )
    click.get_current_context().exit(1 if only_plan and changes else 0)


async def _provision(
    session: Session, /, *, only_plan: bool, capabilities: tuple[str, ...], allow_destructive: bool
) -> int:
    from callboard.runtime.bus import provision, topology
    from callboard.runtime.bus.plan import render, to_json

    settings = session.settings()
    async with session.bus("provision") as bus:
        wanted = topology.declared(
            settings.topology, capabilities=capabilities, work=settings.work, audit=settings.actors.audit
        )
        planned = await provision.plan(bus, wanted)
        if session.json:
            shown = to_json(planned)
        else:
            click.echo(render(planned))
        if not only_plan:
            await provision.apply(bus, planned, allow_destructive=allow_destructive)
        if session.json:
            emit({**shown, "applied": not only_plan})
        elif not only_plan and planned.changes:
            note("done, and read back")
    return len(planned.changes)
