"""``callboard completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from callboard.cli.session import example


@click.command("completion", epilog=example('eval "$(callboard completion bash)"'))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell; evaluate it in the shell's start file."""
    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(ctx.find_root().command, {}, "callboard", "_CALLBOARD_COMPLETE").source())
