"""The files of ``deploy/k8s`` that Callboard writes itself. ``python -m tests.deploy.generated`` writes them anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from callboard.cli import k8s_base, k8s_folder, k8s_pool, k8s_twin
from callboard.cli.k8s import _words
from callboard.cli.k8s_pool import Pool
from callboard.runtime.bus import topology
from callboard.runtime.config import TopologySettings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"

DEFAULT = Pool(
    name="default", capabilities=("hello",), max=10, code="callboard-code", scaler="none", has_login=False, min=1
)
AGENTS = Pool(
    name="agents",
    modules=("@installed",),
    min=2,
    max=4,
    drain_grace_s=600,
    has_actors=True,
    scaler="none",
    providers=("openai",),
)
BATCH = Pool(name="batch", max=50, drain_grace_s=15, is_spot=True, code="callboard-code")
POOLS = {
    "base/pools/default": DEFAULT,
    "overlays/prod-ha/pools/agents": AGENTS,
    "overlays/spot/pools/batch": BATCH,
}
NACK_WORDS = ["k8s", "streams", "--replicas", "3", "--capability", "hello"]


def keda_default() -> Pool:
    """Return the pool of the base as the component ``keda`` makes it."""
    return Pool(name="default", capabilities=("hello",), max=10, code="callboard-code")


def twin() -> topology.Topology:
    """Return what the component ``nack`` stands for."""
    return topology.declared(TopologySettings(replicas=3), capabilities=("hello",))


def texts() -> dict[str, str]:
    """Return the text of every generated file by its path below ``deploy/k8s``."""
    found: dict[str, str] = {}
    for folder, pool in POOLS.items():
        wanted = k8s_folder.texts(k8s_pool.files(pool), words=_words(pool))
        found |= {f"{folder}/{name}": text for name, text in wanted.items()}
    single: dict[str, Callable[[], str]] = {
        "base/provision.yaml": lambda: k8s_folder.text(k8s_base.provision()),
        "components/login/registry.yaml": lambda: k8s_folder.text(k8s_base.registry()),
        "components/keda/scaled-object.yaml": lambda: k8s_folder.text(
            k8s_pool.files(keda_default())["scaled-object.yaml"]
        ),
        "components/nack/streams.yaml": lambda: k8s_folder.text(k8s_twin.twin(twin()), words=NACK_WORDS),
    }
    found |= {name: make() for name, make in single.items()}
    for name, patch in k8s_base.login_patches().items():
        found[f"components/login/{name}"] = k8s_folder.text([patch])  # type: ignore[list-item]  # a list of operations
    return found


def write() -> None:
    """Write all of them."""
    for name, text in texts().items():
        path = K8S / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
