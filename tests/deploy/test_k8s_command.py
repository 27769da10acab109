"""``callboard k8s``: what it writes, what it finds changed, and what it says about names that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import policy, render, schema
from tests.deploy.generated import ROOT


def _call(*words: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "callboard", "k8s", *words],
        cwd=folder,
        env=known | env,
        capture_output=True,
        text=True,
        check=False,
    )


def _rendered(*words: str, folder: Path) -> dict[str, Any]:
    done = _call("render", *words, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return render.by_name(json.loads(done.stdout))


def test_a_pool_is_rendered_whole(tmp_path: Path) -> None:
    found = _rendered("--pool", "gpu", "--max", "20", "--label", "gpu=yes", "--label", "zone=a", folder=tmp_path)
    assert {title.partition("/")[0] for title in found} == {
        "ServiceAccount",
        "Deployment",
        "PodDisruptionBudget",
        "Job",
        "ScaledObject",
    }
    spec = found["ScaledObject/callboard-gpu"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 20)
    env = {v["name"]: v["value"] for v in render.pods([found["Deployment/callboard-gpu"]])[0]["containers"][0]["env"]}
    assert env["CALLBOARD_WORKER__LABELS"] == "gpu=yes,zone=a"
    assert env["CALLBOARD_WORKER__USER"] == "worker-gpu"
    assert "replicas" not in found["Deployment/callboard-gpu"]["spec"]


VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "actors": ["--actors", "--provider", "openai", "--min", "2"],
    "spot": ["--spot"],
    "no login": ["--no-login", "--scaler", "none"],
    "several": ["--capability", "embed", "--capability", "top-5", "--node-label", "example.com/gpu=a100"],
    "code": ["--code", "callboard-code", "--memory", "2Gi", "--cpu", "1"],
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=list(VARIANTS))
def test_whatever_is_asked_for_keeps_to_the_policy(words: list[str], tmp_path: Path) -> None:
    done = _call("render", "--pool", "gpu", *words, "--out", "pool", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "kustomization.yaml").write_text(
        "kind: Kustomization\nnamespace: callboard\nresources:\n  - base.yaml\n  - pool\n"
        f"images:\n  - name: callboard\n    digest: sha256:{'1' * 64}\n",
        "utf-8",
    )
    account = (ROOT / "deploy/k8s/base/provision.yaml").read_text("utf-8").partition("---\n")[0]
    deny = (ROOT / "deploy/k8s/components/networkpolicy/deny.yaml").read_text("utf-8").partition("---\n")[0]
    (tmp_path / "base.yaml").write_text(f"{account}---\n{deny}", "utf-8")
    objects = render.render(tmp_path)
    assert policy.problems(objects, is_production=True) == []
    assert [found for each in objects if schema.is_custom(each) for found in schema.problems(each)] == []
    assert _call("diff", "pool", folder=tmp_path).returncode == 0


def test_every_built_in_object_of_a_pool_passes_the_schema_of_kubernetes(tmp_path: Path) -> None:
    for words in VARIANTS.values():
        found = _rendered("--pool", "gpu", *words, folder=tmp_path)
        for each in found.values():
            if not schema.is_custom(each):
                assert schema.built_in_problems(each) == []


def test_what_was_changed_by_hand_is_shown(tmp_path: Path) -> None:
    assert _call("render", "--pool", "gpu", "--max", "20", "--out", "gpu", folder=tmp_path).returncode == 0
    same = _call("diff", "gpu", "--json", folder=tmp_path)
    assert (same.returncode, json.loads(same.stdout)["equal"]) == (0, True)
    path = tmp_path / "gpu" / "deployment.yaml"
    path.write_text(path.read_text("utf-8").replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"))
    (tmp_path / "gpu" / "extra.yaml").write_text("kind: ConfigMap\n", "utf-8")
    changed = _call("diff", "gpu", folder=tmp_path)
    assert changed.returncode == 1
    assert "-            readOnlyRootFilesystem: false" in changed.stdout
    assert "+            readOnlyRootFilesystem: true" in changed.stdout
    assert "-kind: ConfigMap" in changed.stdout
    assert _call("render", "--pool", "gpu", "--max", "20", "--out", "gpu", folder=tmp_path).returncode == 0
    assert _call("diff", "gpu", folder=tmp_path).returncode == 0
    assert not (tmp_path / "gpu" / "extra.yaml").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "deployment.yaml").write_text("kind: Deployment\n", "utf-8")
    done = _call("render", "--pool", "gpu", "--out", "theirs", folder=tmp_path)
    assert done.returncode == 2
    assert "did not write" in done.stderr
    assert (tmp_path / "theirs" / "deployment.yaml").read_text("utf-8") == "kind: Deployment\n"
    assert "was not written by" in _call("diff", "theirs", folder=tmp_path).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pool", "GPU"], "cannot name objects of Kubernetes"),
        (["--pool", "a_b"], "cannot name objects of Kubernetes"),
        (["--pool", "-a"], "cannot name objects of Kubernetes"),
        (["--pool", "a" * 41], "take 1 to 40"),
        (["--pool", ""], "cannot name objects of Kubernetes"),
        (["--pool", "gpu\n"], "cannot name objects of Kubernetes"),
        (["--pool", "gpu", "--capability", "to.do"], "capability 'to.do' is not usable"),
        (["--pool", "gpu", "--module=-x"], "module '-x' is not usable"),
        (["--pool", "gpu", "--label", "gpu"], "is no pair"),
        (["--pool", "gpu", "--label", "gpu=a b"], "is no label"),
        (["--pool", "gpu", "--label", "gpu=a", "--label", "gpu=b"], "given twice"),
        (["--pool", "gpu", "--node-label", "/x=a"], "is no label"),
        (["--pool", "gpu", "--max", "0"], "--max from 1"),
        (["--pool", "gpu", "--max", "2", "--min", "3"], "0 <= min <= max"),
        (["--pool", "gpu", "--max", "1000", "--slots", "5"], "raise work.max_ack_pending"),
        (["--pool", "gpu", "--slots", "0"], "--slots must be at least 1"),
        (["--pool", "gpu", "--spot", "--drain-grace", "60s"], "the notice is 25 s"),
        (["--pool", "gpu", "--memory", "lots"], "--memory 'lots' is not usable"),
        (["--pool", "gpu", "--code", "My_Code"], "--code 'My_Code' is not usable"),
        (["--pool", "gpu", "--provider", "Open AI"], "--provider 'Open AI' is not usable"),
        ([], "Missing option '--pool'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(words: list[str], said: str, tmp_path: Path) -> None:
    done = _call("render", *words, "--out", "pool", folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.replace("max from 1", "--max from 1")
    assert not (tmp_path / "pool").exists()


def test_a_larger_claim_limit_lets_a_pool_be_larger(tmp_path: Path) -> None:
    words = ("render", "--pool", "gpu", "--max", "1000", "--slots", "5", "--out", "pool")
    assert _call(*words, folder=tmp_path, CALLBOARD_WORK__MAX_ACK_PENDING="5000").returncode == 0


def test_the_streams_are_written_for_nack(tmp_path: Path) -> None:
    done = _call("streams", "--replicas", "3", "--capability", "hello", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "deploy/k8s/components/nack/streams.yaml").read_text("utf-8")


def test_secrets_are_made_of_what_nats_config_wrote(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "callboard", "nats", "config", "--tls", "--pool", "gpu", "--out", "nats"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    done = _call("secrets", "--from", "nats", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {each["metadata"]["name"]: each for each in yaml.safe_load_all(done.stdout)}
    assert set(found) == {
        "nats-accounts",
        "nats-tls",
        *(f"callboard-{user}" for user in ("worker-gpu", "host-default", "registry", "operator")),
    }
    assert set(found["callboard-worker-gpu"]["data"]) == {"seed", "ca.crt", "tls.crt", "tls.key"}
    assert [each for each in found.values() if schema.built_in_problems(each)] == []


def test_secrets_need_certificates(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    assert "holds no configuration" in _call("secrets", folder=tmp_path).stderr
