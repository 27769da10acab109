"""``callboard k8s``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.output import SPAN, emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.cli.k8s_pool import Pool

F = TypeVar("F", bound=Callable[..., Any])
ENDPOINT = "nats-headless.callboard.svc.cluster.local:8222"


@click.group("k8s")
def command() -> None:
    """Write manifests for Kubernetes: pools of workers, streams, secrets."""


def _pool_options(function: F) -> F:
    options = (
        click.option("--pool", "name", required=True, help="Name of the pool, and of its objects: callboard-NAME."),
        click.option(
            "--capability", "capabilities", multiple=True, help="What it serves; may be repeated.  [default: its name]"
        ),
        click.option(
            "--module", "modules", multiple=True, help="What its workers load; may be repeated.  [default: @installed]"
        ),
        click.option("--code", metavar="CONFIGMAP", help="A ConfigMap with the modules, in place of --module."),
        click.option("--min", "min_", type=int, default=0, show_default=True, help="Fewest pods; 1 with --actors."),
        click.option("--max", "max_", type=int, default=10, show_default=True, help="Most pods."),
        click.option("--slots", type=int, default=8, show_default=True, help="Slots of each capability in a pod."),
        click.option("--label", "labels", multiple=True, metavar="K=V", help="What its workers bear; may be repeated."),
        click.option(
            "--node-label", "node_labels", multiple=True, metavar="K=V", help="What its nodes bear; may be repeated."
        ),
        click.option(
            "--drain-grace",
            "drain_grace_s",
            type=SPAN,
            help="Time to finish after a stop; as long as most tasks take.  [default: 10m, with --spot 15s]",
        ),
        click.option("--actors/--no-actors", "has_actors", help="Its modules hold actors: it is a user of role host."),
        click.option("--spot/--no-spot", "is_spot", help="For nodes that go at short notice."),
        click.option(
            "--provider", "providers", multiple=True, help="Give it this model provider's key, and let it out to it."
        ),
        click.option(
            "--provider-secret", default="callboard-providers", show_default=True, help="The Secret of those keys."
        ),
        click.option("--cpu", default="250m", show_default=True, help="Request of each pod."),
        click.option("--memory", default="512Mi", show_default=True, help="Request and limit of each pod."),
        click.option("--scaler", type=click.Choice(["keda", "none"]), default="keda", show_default=True),
        click.option("--login/--no-login", "has_login", default=True, help="Whether the servers have users."),
        click.option("--monitoring", default=ENDPOINT, show_default=True, help="Where KEDA asks the servers."),
        click.option("--account", default="callboard", show_default=True, help="The servers' account that KEDA reads."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command(
    "render",
    epilog=example(
        "callboard k8s render --pool gpu --max 20 --label gpu=yes --out pools/gpu",
        "callboard k8s render --pool desk --actors --capability search --provider openai | kubectl apply -f -",
    ),
)
@_pool_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="A folder for kustomize; else printed.")
@json_option
@global_options
@pass_session
def render(session: Session, /, *, out: Path | None, **options: Any) -> None:  # noqa: ANN401 - click hands over by name
    """Write the manifests of a pool.

    The image is called `callboard`: `images` in your kustomization says which one it is. Its user is worker-NAME, with
    --actors host-NAME, as `callboard nats config --pool NAME` and `--host NAME` make it.
    """
    from callboard.cli import k8s_folder, k8s_pool

    pool = _pool(options)
    k8s_pool.check(pool, max_ack_pending=session.settings().work.max_ack_pending)
    files = k8s_pool.files(pool)
    if out is not None:
        k8s_folder.write(out, k8s_folder.texts(files, words=_words(pool)))
        if session.json:
            emit({"folder": str(out), "files": sorted(files)})
            return
        note(f"wrote {', '.join(sorted(files))} to {out}: add it to `resources` of your kustomization.yaml")
        return
    objects = [each for name, each_file in files.items() if name != k8s_folder.KUSTOMIZATION for each in each_file]
    if session.json:
        emit(objects)
    else:
        click.echo(k8s_folder.text(objects), nl=False)


@command.command("diff", epilog=example("callboard k8s diff pools/gpu"))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@json_option
@global_options
@pass_session
def diff(session: Session, /, folder: Path) -> None:
    """Compare a folder with what `render` writes today, for the options that it was written with; exit 1 on difference.

    Run it after an upgrade, and to find what was changed by hand.
    """
    from callboard.cli import k8s_folder, k8s_pool
    from callboard.runtime.errors import ConfigError

    words = k8s_folder.written_by(folder)
    if words is None or words[:2] != ["k8s", "render"]:
        message = f"{folder} was not written by `callboard k8s render`: its {k8s_folder.KUSTOMIZATION} does not say so"
        raise ConfigError(message)
    with render.make_context("render", words[2:], parent=click.get_current_context().parent) as context:
        options = {name: value for name, value in context.params.items() if name != "out"}
    pool = _pool(options)
    k8s_pool.check(pool, max_ack_pending=session.settings().work.max_ack_pending)
    found = k8s_folder.compare(folder, k8s_folder.texts(k8s_pool.files(pool), words=_words(pool)))
    if session.json:
        emit({"folder": str(folder), "equal": not found, "diff": found})
    elif found:
        click.echo("\n".join(found))
    else:
        note(f"{folder} is what `callboard {' '.join(words)}` writes")
    click.get_current_context().exit(1 if found else 0)


@command.command("streams", epilog=example("callboard k8s streams --replicas 3 --capability search > streams.yaml"))
@click.option("--capability", "capabilities", multiple=True, help="Its consumers too; may be repeated.")
@click.option("--replicas", type=click.Choice(["1", "3", "5"]), help="Copies of each stream.")
@json_option
@global_options
@pass_session
def streams(session: Session, /, *, capabilities: tuple[str, ...], replicas: str | None) -> None:
    """Write what `callboard provision` makes as resources of NACK, for clusters that keep streams there."""
    from callboard.cli import k8s_folder, k8s_twin
    from callboard.runtime.bus import topology

    settings = session.settings(topology__replicas=replicas)
    declared = topology.declared(
        settings.topology, capabilities=capabilities, work=settings.work, audit=settings.actors.audit
    )
    found = k8s_twin.twin(declared)
    if session.json:
        emit(found)
        return
    words = ["k8s", "streams", *(["--replicas", replicas] if replicas else [])]
    words += [word for name in capabilities for word in ("--capability", name)]
    click.echo(k8s_folder.text(found, words=words), nl=False)


@command.command("secrets", epilog=example("callboard k8s secrets --from nats | kubectl apply -f -"))
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("nats"),
    show_default=True,
    help="Folder of `callboard nats config --tls`.",
)
@click.option("--namespace", default="callboard", show_default=True)
@json_option
@global_options
@pass_session
def secrets(session: Session, /, *, folder: Path, namespace: str) -> None:
    """Print the Secrets of servers and users, with their keys: pipe them to kubectl, do not keep them."""
    from callboard.cli import k8s_folder, k8s_secrets
    from callboard.runtime.security.folder import Folder

    found = k8s_secrets.secrets(Folder(folder), namespace=namespace)
    if session.json:
        emit(found)
    else:
        click.echo(k8s_folder.text(found), nl=False)


def _pool(options: dict[str, Any]) -> Pool:
    from callboard.cli.k8s_pod import Room
    from callboard.cli.k8s_pool import SPOT_DRAIN_S, Pool, seconds
    from callboard.cli.k8s_scaler import Monitoring

    grace_s, is_spot = options["drain_grace_s"], options["is_spot"]
    usual_s = SPOT_DRAIN_S if is_spot else 600
    return Pool(
        name=options["name"],
        capabilities=tuple(dict.fromkeys(options["capabilities"])),
        modules=tuple(options["modules"]),
        min=options["min_"],
        max=options["max_"],
        slots=options["slots"],
        drain_grace_s=usual_s if grace_s is None else seconds(grace_s),
        labels=_pairs("--label", options["labels"]),
        node_labels=_pairs("--node-label", options["node_labels"]),
        has_actors=options["has_actors"],
        has_login=options["has_login"],
        is_spot=is_spot,
        providers=tuple(options["providers"]),
        provider_secret=options["provider_secret"],
        code=options["code"],
        scaler=options["scaler"],
        room=Room(cpu=options["cpu"], memory=options["memory"]),
        monitoring=Monitoring(endpoint=options["monitoring"], account=options["account"]),
    )


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            message = f"{option} {text!r} is no pair: write {option} key=value"
            raise click.BadParameter(message)
        if found.get(key, value) != value:
            message = f"{option} {key} is given twice, as {found[key]!r} and {value!r}"
            raise click.BadParameter(message)
        found[key] = value
    return found


def _words(pool: Pool) -> list[str]:
    """Return the call that makes this pool, without what is the default."""
    usual = type(pool)(name=pool.name)
    words = ["k8s", "render", "--pool", pool.name]
    lists = {"--capability": pool.capabilities, "--module": pool.modules, "--provider": pool.providers}
    for option, values in lists.items():
        words += [word for value in values for word in (option, value)]
    for option, pairs in (("--label", pool.labels), ("--node-label", pool.node_labels)):
        words += [word for key, value in pairs.items() for word in (option, f"{key}={value}")]
    single = {
        "--code": (pool.code, usual.code),
        "--min": (pool.min, usual.min),
        "--max": (pool.max, usual.max),
        "--slots": (pool.slots, usual.slots),
        "--drain-grace": (f"{pool.drain_grace_s}s", ""),
        "--provider-secret": (pool.provider_secret, usual.provider_secret),
        "--cpu": (pool.room.cpu, usual.room.cpu),
        "--memory": (pool.room.memory, usual.room.memory),
        "--scaler": (pool.scaler, usual.scaler),
        "--monitoring": (pool.monitoring.endpoint, usual.monitoring.endpoint),
        "--account": (pool.monitoring.account, usual.monitoring.account),
    }
    for option, (value, default) in single.items():
        words += [option, str(value)] if value != default else []
    words += ["--actors"] if pool.has_actors else []
    words += ["--spot"] if pool.is_spot else []
    return [*words, *([] if pool.has_login else ["--no-login"])]
