"""``callboard restore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note
from callboard.cli.progress import Counter
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.restore import Restored


@click.command("restore", epilog=example("callboard --nats nats://new:4222 restore backups/monday"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--overwrite", is_flag=True, help="Delete the streams that are there, with all they hold.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, folder: Path, overwrite: bool) -> None:
    """Make the streams of a backup anew. Stop the workers before: it refuses while it hears one.

    Every checksum is compared before anything is changed. Streams that ever held a message are left alone without
    --overwrite.
    """
    restored = session.run(_restore(session, folder, overwrite=overwrite))
    if session.json:
        emit({"streams": restored})
        return
    for each in restored:
        more = f", {each.skipped} numbers skipped" if each.skipped else ""
        click.echo(f"{each.stream:15} {each.messages:>10} messages of {each.expected} when it was saved{more}")
    note("done; start the workers, then look with `callboard doctor --deep`")


async def _restore(session: Session, folder: Path, *, overwrite: bool) -> list[Restored]:
    from callboard.runtime import backup, restore
    from callboard.runtime.bus import topology
    from callboard.runtime.clock import SYSTEM_CLOCK

    manifest = backup.check(folder)
    settings = session.settings()
    wanted = topology.declared(settings.topology, work=settings.work, audit=settings.actors.audit)
    async with session.bus("restore") as bus:
        with Counter("restored", is_quiet=session.json) as counter:
            return await restore.restore(
                bus,
                folder,
                manifest,
                wanted,
                clock=SYSTEM_CLOCK,
                progress=counter.count,
                overwrite=overwrite,
            )
