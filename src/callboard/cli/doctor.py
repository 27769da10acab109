"""``callboard doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.finding import Finding

BUNDLE = "callboard-doctor.json"
_SIGNS = {"ok": "ok  ", "note": "note", "warning": "warn", "problem": "FAIL"}
_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "problem": "red"}


@click.command(
    "doctor", epilog=example("callboard doctor", "callboard doctor --deep", "callboard doctor --bundle --json")
)
@click.option("--deep", is_flag=True, help="Also probe, compare and look for damage; a second more.")
@click.option("--bundle", is_flag=True, help=f"Write findings, settings and versions to {BUNDLE}, secrets taken out.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, bundle: bool, deep: bool) -> None:
    """Check what Callboard stands on, and say what to do about each fault.

    Looks at the server and its limits, syncing, streams and their headroom, consumers, disk, clocks, dead letters,
    waiting work that nobody offers, actors and their owners, workers, and which sandboxes work here.
    Ends with status 1 when there is a problem (a warning is none).

    With --deep it stores and deletes a message, compares every stream and consumer with what is declared, and looks for
    damage, lagging replicas, tasks that wait too long, and workers that are started again and again.
    """
    findings = session.run(_examine(session, is_deep=deep))
    if bundle:
        Path(BUNDLE).write_bytes(_bundle(session, findings))
    if session.json:
        emit({"findings": findings, "problems": sum(f.level == "problem" for f in findings)})
    elif bundle:
        click.echo(f"wrote {BUNDLE}; read it before you send it to somebody")
    click.get_current_context().exit(1 if any(f.level == "problem" for f in findings) else 0)


async def _examine(session: Session, *, is_deep: bool) -> list[Finding]:
    from callboard.agents.sandbox import survey
    from callboard.agents.settings import AgentSettings
    from callboard.runtime import doctor
    from callboard.runtime.host import connector

    settings = session.command_settings()
    findings = []
    for checks in (
        doctor.examine(settings, connector(settings), is_deep=is_deep),
        survey.examine(AgentSettings.of(settings).sandbox),
    ):
        async for finding in checks:
            findings.append(finding)
            if not session.json:
                _show(finding)
    return findings


def _show(finding: Finding) -> None:
    sign = click.style(_SIGNS[finding.level], fg=_COLOURS[finding.level])
    click.echo(f"{sign}  {finding.check:<18} {finding.text}")
    if finding.fix and finding.level != "ok":
        click.echo(f"      {'':<18} -> {finding.fix}")


def _bundle(session: Session, /, findings: list[Finding]) -> bytes:
    import platform
    from importlib.metadata import distributions

    import msgspec

    from callboard.runtime.redact import redact
    from callboard.runtime.version import VERSION

    packages = {name: found.version for found in distributions() if (name := found.metadata["Name"])}
    content = {
        "callboard": VERSION,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(sorted(packages.items())),
        "settings": [{"key": x.key, "value": x.value, "origin": x.origin} for x in session.settings().shown()],
        "findings": msgspec.to_builtins(findings),
    }
    return msgspec.json.format(msgspec.json.encode(redact(content)), indent=2)
