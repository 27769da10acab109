"""Every overlay: rendered by the real thing and by ours, strict schemas, policy; and a broken copy for each check."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from callboard.agents.settings import AgentSettings
from callboard.cli import k8s_pool
from callboard.runtime.config import Settings
from callboard.runtime.errors import ConfigError
from tests.deploy import generated, policy, render, schema
from tests.deploy.render import Manifest

OVERLAYS = generated.K8S / "overlays"
NAMES = ("dev-single", "prod-ha", "spot")
COUNTS = {"dev-single": 14, "prod-ha": 22, "spot": 27}
Breakage = Callable[[dict[str, Manifest]], object]


@lru_cache
def _read(name: str) -> list[Manifest]:
    return render.render(OVERLAYS / name)


def _rendered(name: str) -> list[Manifest]:
    return copy.deepcopy(_read(name))


def _nack() -> list[Manifest]:
    return render.render(generated.K8S / "components" / "nack")


def _everything() -> list[Manifest]:
    return [each for name in NAMES for each in _rendered(name)] + _nack()


def test_there_is_no_overlay_beside_those_that_are_tested() -> None:
    assert {path.name for path in OVERLAYS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_has_as_many_objects_as_it_should(name: str) -> None:
    found = render.by_name(_rendered(name))
    sys.stdout.write(f"{name}: {len(found)} objects\n")
    assert len(found) == COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_kubectl_renders_what_our_renderer_does(name: str) -> None:
    reason = render.real()
    if reason:
        pytest.skip(f"rendered by ours alone: {reason}")
    assert render.by_name(render.kubectl(OVERLAYS / name)) == render.by_name(_rendered(name))


def test_our_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nnamePrefix: x-\n", "utf-8")
    with pytest.raises(AssertionError, match="namePrefix"):
        render.render(tmp_path)


def test_every_custom_resource_passes_our_strict_schema() -> None:
    custom = [each for each in _everything() if schema.is_custom(each)]
    assert {each["kind"] for each in custom} == set(schema.CUSTOM)
    assert {each["metadata"]["name"]: found for each in custom if (found := schema.problems(each))} == {}


def test_every_custom_resource_passes_the_schema_of_its_maker() -> None:
    schemas = schema.crds()
    custom = [each for each in _everything() if schema.is_custom(each)]
    assert {each["metadata"]["name"]: found for each in custom if (found := schema.crd_problems(each, schemas))} == {}
    broken = copy.deepcopy(next(each for each in custom if each["kind"] == "ScaledObject"))
    broken["spec"]["maxReplicas"] = 3
    assert schema.crd_problems(broken, schemas)


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_object_passes_the_schema_of_kubernetes(name: str) -> None:
    built_in = [each for each in _rendered(name) if not schema.is_custom(each)]
    assert len(built_in) > 10
    assert {each["metadata"]["name"]: found for each in built_in if (found := schema.built_in_problems(each))} == {}


def test_the_schema_of_kubernetes_catches_a_misspelled_field() -> None:
    broken = copy.deepcopy(render.by_name(_rendered("prod-ha"))["Deployment/callboard-default"])
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert schema.built_in_problems(broken)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ScaledObject", "spec.maxReplicas", 3),
        ("ScaledObject", "spec.minReplicaCount", "0"),
        ("ScaledObject", "spec.fallback.behavior", "keep"),
        ("ScaledObject", "spec.triggers.0.name", "top-5"),
        ("ScaledObject", "spec.triggers.0.metadata.durable", "x"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", 15),
        ("Stream", "spec.allowMsgSchedule", True),
        ("Stream", "spec.maxAge", 30),
        ("Consumer", "spec.ackWait", "4"),
        ("Account", "spec.nkey.seedFile", "seed"),
    ],
)
def test_our_schemas_catch_a_broken_copy(kind: str, path: str, value: object) -> None:
    broken = copy.deepcopy(next(each for each in _everything() if each["kind"] == kind))
    *parents, last = path.split(".")
    at: Any = broken
    for part in parents:
        at = at[int(part)] if part.isdigit() else at[part]
    at[last] = value
    assert any(last in problem for problem in schema.problems(broken))


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_keeps_to_the_policy(name: str) -> None:
    assert policy.problems(_rendered(name), is_production=name != "dev-single") == []


def _pod(objects: dict[str, Manifest], title: str = "Deployment/callboard-default") -> Manifest:
    return render.pods([objects[title]])[0]


def _main(objects: dict[str, Manifest], title: str = "Deployment/callboard-default") -> Manifest:
    return render.containers(_pod(objects, title))[0]


def _set_env(objects: dict[str, Manifest], name: str, value: str) -> None:
    for variable in _main(objects)["env"]:
        if variable["name"] == name:
            variable["value"] = value


def _mount(objects: dict[str, Manifest], title: str, secret: str) -> None:
    _pod(objects, title)["volumes"].append({"name": "more", "secret": {"secretName": secret}})


def _egress(objects: dict[str, Manifest], name: str) -> Manifest:
    rules: list[Manifest] = objects[f"NetworkPolicy/{name}"]["spec"]["egress"]
    return rules[0]


AGENTS, REGISTRY = "Deployment/callboard-agents", "Deployment/callboard-registry"
BREAKAGES: dict[str, tuple[Breakage, str]] = {
    "root": (lambda o: _pod(o)["securityContext"].pop("runAsNonRoot"), "may run as root"),
    "root by number": (lambda o: _pod(o)["securityContext"].update(runAsUser=0), "may run as root"),
    "seccomp": (lambda o: _pod(o)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    "token": (lambda o: _pod(o).pop("automountServiceAccountToken"), "mounts a token"),
    "account": (lambda o: _pod(o).update(serviceAccountName="default"), "no ServiceAccount of its own"),
    "account token": (
        lambda o: o["ServiceAccount/callboard-default"].pop("automountServiceAccountToken"),
        "hands out tokens",
    ),
    "host network": (lambda o: _pod(o).update(hostNetwork=True), "sets hostNetwork"),
    "host path": (
        lambda o: _pod(o)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        "none of the harmless kinds",
    ),
    "full node": (lambda o: _pod(o)["volumes"][0].update(emptyDir={}), "may fill the node"),
    "writable root": (
        lambda o: _main(o)["securityContext"].update(readOnlyRootFilesystem=False),
        "its root can be written",
    ),
    "escalation": (lambda o: _main(o)["securityContext"].pop("allowPrivilegeEscalation"), "may gain privileges"),
    "privileged": (lambda o: _main(o)["securityContext"].update(privileged=True), "may gain privileges"),
    "capabilities": (lambda o: _main(o)["securityContext"].pop("capabilities"), "keeps capabilities"),
    "capability added": (
        lambda o: _main(o)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "keeps capabilities",
    ),
    "pod overridden": (lambda o: _main(o)["securityContext"].update(runAsUser=0), "overrides its pod"),
    "requests": (lambda o: _main(o)["resources"]["requests"].pop("cpu"), "no cpu in requests"),
    "limits": (lambda o: _main(o)["resources"].pop("limits"), "no memory in limits"),
    "startup": (lambda o: _main(o).pop("startupProbe"), "has no startupProbe"),
    "liveness": (lambda o: _main(o).pop("livenessProbe"), "has no livenessProbe"),
    "readiness": (lambda o: _main(o).pop("readinessProbe"), "has no readinessProbe"),
    "budget": (lambda o: o.pop("PodDisruptionBudget/callboard-default"), "0 disruption budgets"),
    "budget of others": (
        lambda o: o["PodDisruptionBudget/callboard-default"]["spec"].update(selector={"matchLabels": {"a": "b"}}),
        "0 disruption budgets",
    ),
    "budget of nothing": (
        lambda o: o["PodDisruptionBudget/callboard-default"]["spec"].update(maxUnavailable=0),
        "lets no node be emptied",
    ),
    "spread": (lambda o: _pod(o).pop("topologySpreadConstraints"), "do not spread"),
    "selector": (
        lambda o: o["Deployment/callboard-default"]["spec"].update(selector={"matchLabels": {"a": "b"}}),
        "selector does not match",
    ),
    "tag": (lambda o: _main(o).update(image="registry.example.com/callboard:1.0"), "not named by digest"),
    "short digest": (lambda o: _main(o).update(image="callboard@sha256:abc"), "not named by digest"),
    "grace": (lambda o: _pod(o).update(terminationGracePeriodSeconds=600), "is killed after"),
    "default grace": (lambda o: _pod(o).pop("terminationGracePeriodSeconds"), "is killed after"),
    "longer drain": (lambda o: _set_env(o, "CALLBOARD_WORKER__DRAIN_GRACE_S", "3600"), "is killed after"),
    "no drain": (lambda o: _main(o).update(env=[]), "says nothing of its drain"),
    "long spot": (
        lambda o: _pod(o, "Deployment/callboard-batch").update(terminationGracePeriodSeconds=60),
        "the notice is",
    ),
    "clear secret": (
        lambda o: _main(o)["env"].append({"name": "OPENAI_API_KEY", "value": "x"}),
        "holds a secret in the clear",
    ),
    "secret variables": (
        lambda o: _main(o)["envFrom"].append({"secretRef": {"name": "callboard-providers"}}),
        "takes a Secret as variables",
    ),
    "secret variable": (
        lambda o: _main(o)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "callboard-providers", "key": "openai"}}}
        ),
        "takes a Secret as variables",
    ),
    "provider key at the registry": (
        lambda o: _mount(o, REGISTRY, "callboard-providers"),
        "callboard-registry: can read the Secret callboard-providers",
    ),
    "provider key at a pool": (
        lambda o: _mount(o, "Deployment/callboard-default", "callboard-providers"),
        "callboard-default: can read the Secret callboard-providers",
    ),
    "operator at a pool": (
        lambda o: _mount(o, AGENTS, "callboard-operator"),
        "callboard-agents: can read the Secret callboard-operator",
    ),
    "another pool's user": (
        lambda o: _mount(o, AGENTS, "callboard-worker-default"),
        "can read the Secret callboard-worker-default",
    ),
    "egress without a key": (
        lambda o: o["Deployment/callboard-default"]["spec"]["template"]["metadata"]["labels"].update(
            {"callboard.dev/egress": "providers"}
        ),
        "without a provider to reach",
    ),
    "no denial": (lambda o: o.pop("NetworkPolicy/callboard-deny"), "no policy denies all traffic"),
    "open egress": (lambda o: _egress(o, "callboard-workers").pop("to"), "to anybody or on any port"),
    "any port": (lambda o: _egress(o, "callboard-workers").pop("ports"), "to anybody or on any port"),
    "workers get out": (
        lambda o: _egress(o, "callboard-workers")["to"].append({"ipBlock": {"cidr": "8.8.8.8/32"}}),
        "without a provider out of the cluster",
    ),
    "metadata service": (
        lambda o: _egress(o, "callboard-providers")["to"][0]["ipBlock"].pop("except"),
        "metadata service",
    ),
    "anybody in": (lambda o: o["NetworkPolicy/nats"]["spec"]["ingress"][0].pop("from"), "lets anybody in"),
    "namespace": (lambda o: o["ConfigMap/callboard"]["metadata"].pop("namespace"), "has no namespace"),
    "secret in manifests": (
        lambda o: o.update(
            s={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "callboard"}}
        ),
        "secrets do not belong",
    ),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_the_policy_catches_a_broken_copy(what: str) -> None:
    broken = copy.deepcopy(render.by_name(_rendered("spot")))
    breakage, said = BREAKAGES[what]
    breakage(broken)
    found = policy.problems(list(broken.values()), is_production=True)
    assert any(said in problem for problem in found), found


def test_a_pod_drains_for_less_than_its_grace_in_every_overlay() -> None:
    seen = set()
    for name in NAMES:
        for title, each in render.by_name(_rendered(name)).items():
            if each["kind"] != "Deployment":
                continue
            env = {v["name"]: v["value"] for v in each["spec"]["template"]["spec"]["containers"][0]["env"]}
            grace_s = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert grace_s >= int(env["CALLBOARD_WORKER__DRAIN_GRACE_S"]) + 10, title
            seen.add(title)
    assert seen == {f"Deployment/callboard-{name}" for name in ("default", "agents", "batch", "registry")}


@pytest.mark.parametrize("name", NAMES)
def test_all_pods_take_settings_that_exist(name: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-test\n", "utf-8")
    objects = render.by_name(_rendered(name))
    shared = objects["ConfigMap/callboard"]["data"]
    seen = 0
    for pod in render.pods(list(objects.values())):
        container = pod["containers"][0]
        if container["name"] == "nats":
            continue
        own = {variable["name"]: variable["value"] for variable in container["env"]}
        keys = {key: str(tmp_path / "key") for key in own if key.endswith("API_KEY_FILE")}
        env = shared | own | keys
        settings = Settings.load(env=env)
        assert settings.nats.url == shared["CALLBOARD_NATS__URL"]
        providers = AgentSettings.of(settings).providers
        assert [
            each for each in providers if (key := providers[each].api_key) and key.get_secret_value() == "sk-test"
        ] == ["openai" for _ in keys]
        with pytest.raises(ConfigError):
            Settings.load(env=env | {"CALLBOARD_WORKER__DRAIN_GRACE": "1"})
        seen += 1
    assert seen == len(render.pods(list(objects.values()))) - (name == "dev-single")


def test_the_generated_files_are_what_callboard_writes() -> None:
    wanted = generated.texts()
    different = [name for name, text in wanted.items() if (generated.K8S / name).read_text("utf-8") != text]
    assert different == [], "run python -m tests.deploy.generated"
    assert len(wanted) == 21


def test_the_login_component_makes_what_a_pool_with_login_is() -> None:
    found = render.by_name(_rendered("prod-ha"))["Deployment/callboard-default"]
    wanted = copy.deepcopy(k8s_pool.files(generated.keda_default())["deployment.yaml"][0])
    wanted["metadata"]["namespace"] = "callboard"
    image = wanted["spec"]["template"]["spec"]["containers"][0]
    image["image"] = found["spec"]["template"]["spec"]["containers"][0]["image"]
    assert found == wanted


def test_probes_name_paths_that_the_worker_serves() -> None:
    source = (generated.ROOT / "src/callboard/runtime/health.py").read_text("utf-8")
    served = set(re.findall(r'case "(/\w+)"', source))
    for name in NAMES:
        for pod in render.pods([each for each in _rendered(name) if each["kind"] == "Deployment"]):
            container = pod["containers"][0]
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["path"] in served
                assert container[probe]["httpGet"]["port"] in ports
    monitor = yaml.safe_load((generated.K8S / "components/monitoring/pod-monitor.yaml").read_text("utf-8"))
    assert monitor["spec"]["podMetricsEndpoints"][0]["path"] in served
