"""``callboard init``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, json_option, pass_session

_URL = "nats://127.0.0.1:4222"
_CONFIG = """\
# Settings of Callboard; `callboard config show --origin` lists all of them with their defaults.
# The environment wins over this file (CALLBOARD_WORKER__CONCURRENCY=16), flags win over both.

nats:
  url: {url}

worker:
  concurrency: 8        # slots of each process
  drain_grace_s: 30     # time to finish after a stop

log:
  level: info
"""

_HELLO = '''\
"""A first capability: `callboard worker start hello.py`, then `callboard submit hello '"world"' --wait`."""

from callboard import TaskContext, capability


@capability("hello", timeout_s=60)
async def hello(name: str, task: TaskContext) -> str:
    """Greet somebody.

    A handler may run twice after a crash of its worker; `task.id` is the same then and serves as an idempotency key.
    """
    task.progress(50, text=f"thinking of {name}")
    return f"Hello, {name}!"
'''


@click.command("init", epilog=example("callboard init", "callboard init --yes --folder shop"))
@click.option("--yes", is_flag=True, help="Ask nothing; take the defaults.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where.  [default: here]"
)
@json_option
@pass_session
def command(session: Session, /, *, yes: bool, folder: Path) -> None:
    """Write callboard.yaml and hello.py, a capability to begin with. What exists is left as it is."""
    url = _URL
    if not yes and not session.json and sys.stdin.isatty():
        url = click.prompt("NATS server", default=url)
    files = {"callboard.yaml": _config(url), "hello.py": _HELLO}
    folder.mkdir(parents=True, exist_ok=True)
    kept = [name for name in files if (folder / name).exists()]
    written = [name for name in files if name not in kept]
    for name in written:
        (folder / name).write_text(files[name], encoding="utf-8")
    if session.json:
        emit({"written": written, "kept": kept})
        return
    for name in written:
        click.echo(f"wrote {folder / name}")
    for name in kept:
        click.echo(f"left {folder / name} as it is")
    click.echo("\nNext:" + (f"\n  cd {folder}" if folder != Path() else ""))
    click.echo("  callboard up                                 in one terminal")
    click.echo("  callboard worker start hello.py              in a second one")
    click.echo("""  callboard submit hello '"world"' --wait       in a third""")


def _config(url: str) -> str:
    text = _CONFIG.format(url=url)
    # the default stays a comment, so that commands go on finding a server of this folder on another port
    return text if url != _URL else text.replace("nats:\n  url:", "# nats:\n#   url:")
