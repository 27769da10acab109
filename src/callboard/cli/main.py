"""The command ``callboard``: a table of names, imported one at a time, and the exit codes.

``callboard --help`` imports this file and click, nothing else; a command's module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from callboard.cli.output import note
from callboard.cli.session import Session, global_options
from callboard.runtime.errors import CallboardError, InputError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4
NOT_FOUND: Final = 5
UNFINISHED: Final = 6
INTERRUPTED: Final = 130

# name: (module, line for the overview). The command in the module is called `command`.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Digest a folder on three workers, kill one of them, and read the report."),
    "init": ("init", "Make a configuration file and a first capability in this folder."),
    "new": ("new", "Write a first agent of twenty lines, and a test of it."),
    "dev": ("dev", "Develop actors: server, worker and hot reload in one process."),
    "up": ("up", "Run a NATS server here, with everything Callboard needs on it."),
    "worker": ("worker", "Start workers."),
    "workers": ("workers", "List, show, drain, scale and stop the workers that run."),
    "ask": ("ask", "Ask an actor and print its answer."),
    "tell": ("tell", "Put a message into an actor's mailbox."),
    "agents": ("agents", "List actors and agents, look into them, pause, resume and kill them."),
    "approvals": ("approvals", "List what agents ask of people, and grant, deny or suggest."),
    "ctx": ("ctx", "Read, set, watch what agents share: the shared context."),
    "find": ("find", "Find who can do something, or pick the least busy one."),
    "runs": ("runs", "Start, list, show, cancel and retry runs of flows."),
    "watch": ("watch", "Watch a run: its agents, and the words of their models as they are made."),
    "submit": ("submit", "Submit a task and, if you like, wait for its result."),
    "tasks": ("tasks", "List, show, watch and cancel tasks."),
    "dead": ("dead", "List, show, requeue and discard dead letters."),
    "schedule": ("schedule", "Plan recurring and later tasks."),
    "pause": ("pause", "Hold a capability back on all workers."),
    "resume": ("resume", "Let a paused capability go on."),
    "audit": ("audit", "Read the record of all tasks, in order; check and mend the copy of actors."),
    "replay": ("replay", "Show an actor as it was; run a run again on today's code and compare."),
    "log": ("log", "Look through the history of messages."),
    "provision": ("provision", "Create or update streams; --plan shows the difference."),
    "backup": ("backup", "Write every stream, with its consumers, to a folder while work goes on."),
    "restore": ("restore", "Make the streams anew from such a folder."),
    "nats": ("nats", "Write configuration for NATS servers of your own: TLS, users, accounts."),
    "k8s": ("k8s", "Write manifests for Kubernetes: pools of workers, streams, secrets."),
    "tenant": ("tenant", "Make, list, suspend and remove isolated tenants."),
    "cost": ("cost", "Add up what calls of models have cost, by agent, model or run."),
    "budget": ("budget", "Limit what runs, agents and tenants may spend, and see how they stand."),
    "top": ("top", "Watch pools, actors, workers and streams, live."),
    "doctor": ("doctor", "Check server, streams, disk, clock and workers, and say what to do."),
    "config": ("config", "Show every setting and where it came from."),
    "schema": ("schema", "Print the JSON Schema of a record, or of an actor's messages."),
    "sbom": ("sbom", "Print the bill of materials as CycloneDX."),
    "completion": ("completion", "Print the completion script of your shell."),
    "version": ("version", "Print the version."),
}

# Codes whose exit status does not follow from the class.
_STATUS: Final[dict[str, int]] = {
    "bus_connect": UNREACHABLE,
    "bus_auth": UNREACHABLE,
    "bus_closed": UNREACHABLE,
    "bus_timeout": UNREACHABLE,
    "no_responders": UNREACHABLE,
    "no_leader": UNREACHABLE,
    "permission_denied": UNREACHABLE,
    "topology": UNREACHABLE,
    "backpressure": REFUSED,
    "backup": REFUSED,
    "quota_exceeded": REFUSED,
    "conflict": REFUSED,
    "data_folder_in_use": REFUSED,
    "port_in_use": REFUSED,
    "not_found": NOT_FOUND,
    "history": NOT_FOUND,
    "task_not_found": NOT_FOUND,
    "task_timeout": UNFINISHED,
    "unknown_message": USAGE,
    "actor_stopped": REFUSED,
    "mailbox_full": REFUSED,
    "no_host": NOT_FOUND,
    "no_agent": NOT_FOUND,
    "registry_away": UNREACHABLE,
    "duplicate_agent": REFUSED,
    "ask_timeout": UNFINISHED,
    "budget_exceeded": REFUSED,
    "approval_refused": REFUSED,
}

_HINTS: Final[dict[str, str]] = {
    "bus_connect": "--nats, CALLBOARD_NATS__URL or callboard.yaml name another one",
}


# What a cluster without a majority makes of any question.
_UNANSWERED: Final = {"bus_connect", "bus_timeout", "no_responders", "no_leader", "topology"}


class Commands(click.Group):
    """A group that knows its commands by name and imports each when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import the command's module and return it, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"callboard.cli.{COMMANDS[cmd_name][0]}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelled one is answered with the nearest names."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from callboard.runtime.near import near

            meant = near(args[0], COMMANDS, count=2)
            if not meant or "mean" in error.message:
                raise
            message = f"{error.message} Did you mean {' or '.join(repr(name) for name in meant)}?"
            raise click.UsageError(message, ctx) from error

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a reader (head, less) that has seen enough is no failure, as which click would count it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is left in the buffer must not fail at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """Write the overview from the table, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `callboard init`, which says what to do next.",
)
@global_options
@click.version_option(None, "-V", "--version", package_name="callboard", prog_name="callboard")
def cli() -> None:
    """Callboard: a durable work queue and actor runtime on NATS JetStream."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status; see ``docs/cli.md`` for the table."""
    session = Session()
    if sys.stdout is None:
        # the caller closed it (`>&-`) and wants nothing but the status
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    try:
        status = cli.main(args=args, prog_name="callboard", standalone_mode=False, obj=session)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except CallboardError as error:
        if session.debug:
            raise
        _explain(session, error)
        status = status_of(error)
    except Exception as error:
        if session.debug:
            raise
        text = f"{type(error).__name__}: {error}; this is a fault of Callboard, --debug shows where"
        click.echo(f"error[internal]: {text}", err=True)
        status = FAILED
    sys.exit(status if isinstance(status, int) else OK)


def _explain(session: Session, error: CallboardError) -> None:
    """Say what went wrong and what to do; of a cluster that answers nothing, which servers are away."""
    missing = session.missing() if error.code in _UNANSWERED else ""
    if missing:
        note(f"error[{error.code}]: {missing}")
        return
    note(f"error[{error.code}]: {error}")
    if error.code in _HINTS and not session.has_cluster:
        click.echo(_HINTS[error.code], err=True)


def status_of(error: CallboardError) -> int:
    """Return the exit status for an error."""
    if error.code in _STATUS:
        return _STATUS[error.code]
    return USAGE if isinstance(error, InputError) else FAILED
