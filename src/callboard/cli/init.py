"""``callboard init``."""

from __future__ import annotations

from pathlib import Path

import click

from callboard.cli.output import emit
from callboard.cli.session import Session, example, json_option, pass_session

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
def command(session: Session, *, yes: bool, folder: Path) -> None:
    """Write callboard.yaml and hello.py, a capability to begin with. What exists is left as it is."""
    url = "nats://127.0.0.1:4222"
    if not yes and not session.json and click.get_text_stream("stdin").isatty():
        url = click.prompt("NATS server", default=url)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "callboard.yaml": "" if url == "nats://127.0.0.1:4222" else url,
        "hello.py": None,
    }
    written, kept = [], []
    for name, given in files.items():
        path = folder / name
        if path.exists():
            kept.append(name)
            continue
        path.write_text(_HELLO if given is None else _config(given), encoding="utf-8")
        written.append(name)
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
    text = _CONFIG.format(url=url or "nats://127.0.0.1:4222")
    # the default stays a comment, so that commands still find a server of this folder on another port
    return text if url else text.replace("nats:\n  url:", "# nats:\n#   url:")
