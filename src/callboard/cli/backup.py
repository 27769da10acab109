"""``callboard backup``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit, note, size
from callboard.cli.progress import Counter
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.backup import Manifest


@click.command("backup", epilog=example("callboard backup backups/monday", "callboard backup --check backups/monday"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--check", "only_check", is_flag=True, help="Compare the checksums of one that is there; no server needed."
)
@click.option("--clear", "is_cleared", is_flag=True, help="Delete first what a backup that died left on the server.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, folder: Path, only_check: bool, is_cleared: bool) -> None:
    """Write every stream, with its consumers, to the new folder DIR while work goes on.

    A folder of that name is whole: until the end it has another one. Each stream is as it was at a point of its own.
    """
    from callboard.runtime import backup

    manifest = backup.check(folder) if only_check else session.run(_back_up(session, folder, is_cleared=is_cleared))
    if session.json:
        emit(summary(manifest))
        return
    for copy in manifest.streams:
        click.echo(
            f"{copy.stream:15} {copy.messages:>10} messages  to {copy.last_seq:<10} {size(copy.taken.size_bytes)}"
        )
    for copy in manifest.streams:
        if not copy.is_quiet:
            note(
                f"{copy.stream}: delayed tasks that fell due while it was copied may be missing; best take another one"
            )
    took_s = (manifest.ended - manifest.began).total_seconds()
    note(f"{'whole' if only_check else 'written'}: {folder}, {size(manifest.size_bytes)}, taken in {took_s:.1f} s")


def summary(manifest: Manifest) -> dict[str, object]:
    """Return a manifest as commands show it to programs."""
    return {
        "callboard": manifest.callboard,
        "server": manifest.server,
        "began": manifest.began,
        "ended": manifest.ended,
        "size_bytes": manifest.size_bytes,
        "absent": manifest.absent,
        "streams": [
            {
                "stream": copy.stream,
                "messages": copy.messages,
                "last_seq": copy.last_seq,
                "size_bytes": copy.taken.size_bytes,
                "sha256": copy.taken.sha256,
                "is_quiet": copy.is_quiet,
            }
            for copy in manifest.streams
        ],
    }


async def _back_up(session: Session, folder: Path, *, is_cleared: bool) -> Manifest:
    from callboard.runtime import backup
    from callboard.runtime.bus import topology
    from callboard.runtime.clock import SYSTEM_CLOCK

    settings = session.settings()
    wanted = topology.declared(settings.topology, audit=settings.actors.audit)
    async with session.bus("backup") as bus:
        if is_cleared:
            await backup.clear(bus)
        with Counter("saved", is_quiet=session.json) as counter:
            return await backup.back_up(
                bus,
                folder,
                clock=SYSTEM_CLOCK,
                progress=counter.count,
                needs=[config.name for config in wanted.streams if config.storage == "file"],
            )
