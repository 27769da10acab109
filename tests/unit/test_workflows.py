"""The workflows hold to their format, run what make has, pin what they use, and do no more than they need."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.shape import Each, faults
from tests.unit.test_layout import HOSTS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*"))
NAME = re.compile(r"[a-z][a-z-]*")
TEXT = re.compile(r"(?s).+")
SCALAR = (TEXT, int, bool)
# commits of releases, read from the tags of the actions' own repositories
PINNED = {
    "actions/checkout": ("3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    "actions/setup-python": ("5fda3b95a4ea91299a34e894583c3862153e4b97", "v7.0.0"),
    "actions/upload-artifact": ("bbbca2ddaa5d8feaa63e36b76fdaad77386f024f", "v7.0.0"),
    "actions/attest-build-provenance": ("a2bbfa25375fe432b6a289bc6b6cd05ecd0c4c32", "v4.1.0"),
}
RIGHTS = Each(re.compile(r"contents|packages|id-token|attestations"), ("read", "write"))
STEP = (
    {"uses": re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}"), "with?": Each(NAME, SCALAR), "name?": TEXT, "id?": NAME},
    {"run": TEXT, "name?": TEXT, "id?": NAME, "env?": Each(re.compile("[A-Z]+"), SCALAR)},
)
JOB = {
    "runs-on": "ubuntu-24.04",
    "timeout-minutes": int,
    "steps": [STEP],
    "permissions?": RIGHTS,
    "needs?": NAME,
    "if?": TEXT,
    "env?": Each(re.compile("[A-Z]+"), SCALAR),
    "strategy?": {"fail-fast": bool, "matrix": Each(NAME, [TEXT])},
}
FILE = {
    "name": NAME,
    "on": {"push?": {"branches?": [TEXT], "tags?": [TEXT]}, "pull_request?": type(None)},
    "permissions": {"contents": "read"},
    "concurrency": {"group": TEXT, "cancel-in-progress": bool},
    "jobs": Each(NAME, JOB),
}


class Loader(yaml.SafeLoader):
    """YAML as GitHub reads it: `on` is a word."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), ["t", "f"])


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text("utf-8"), Loader)
    return found


def _steps(file: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in file["jobs"].items():
        for step in job["steps"]:
            yield name, step


def _unsafe(file: dict[str, Any], text: str) -> list[str]:
    """Find what breaks our rules."""
    found = [f"names {host}" for host in [*HOSTS, "ghcr.io", "docker.io", "quay.io"] if host in text]
    found += ["reads a stored secret"] if re.search(r"\bsecrets\b\s*[.\[]", text) else []
    found += ["runs for strangers with our rights"] if "pull_request_target" in text else []
    for action, commit, release in re.findall(r"uses: (\S+)@(\S+)(?: # (\S+))?", text):
        if PINNED.get(action) != (commit, release):
            found.append(f"{action} is not pinned to its release")
    for name, step in _steps(file):
        if step.get("uses", "").startswith("actions/checkout@") and step.get("with") != {"persist-credentials": False}:
            found.append(f"{name}: leaves the token in the folder")
        # what a stranger can write (a branch, a title) must come by the environment
        if re.search(r"\$\{\{", step.get("run", "")):
            found.append(f"{name}: puts an expression into a script")
    for name, job in file["jobs"].items():
        attests = any("attest" in step.get("uses", "") for step in job["steps"])
        pushes = any("docker push" in step.get("run", "") for step in job["steps"])
        needed = {"contents": "read"} | ({"id-token": "write", "attestations": "write"} if attests else {})
        needed |= {"packages": "write"} if pushes else {}
        if job.get("permissions", {"contents": "read"}) != needed:
            found.append(f"{name}: may do more or less than it needs")
    return found


def _loose(file: dict[str, Any]) -> list[str]:
    """Find jobs, matrix keys, outputs, files and targets of make that are not there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    found = []
    for name, job in file["jobs"].items():
        text = yaml.safe_dump(job)
        found += [f"{name}: no job {job['needs']}"] if job.get("needs", name) not in file["jobs"] else []
        keys = job.get("strategy", {}).get("matrix", {})
        found += [f"{name}: no matrix.{key}" for key in re.findall(r"matrix\.(\w+)", text) if key not in keys]
        ids = {step["id"] for step in job["steps"] if "id" in step}
        found += [f"{name}: no step {each}" for each in re.findall(r"steps\.(\w+)", text) if each not in ids]
        for step in job["steps"]:
            for words in re.findall(r"^\s*make ([^\n]+)", step.get("run", ""), flags=re.MULTILINE):
                named = re.findall(r"(?<!\S)[a-z][a-z-]*(?!\S)", words)
                found += [f"{name}: no target {each}" for each in named if each not in targets]
            for path in re.findall(r"\bdeploy/[\w./]+", step.get("run", "")):
                found += [] if (ROOT / path).exists() else [f"{name}: no file {path}"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_holds_to_the_format(path: Path) -> None:
    assert faults(_read(path), FILE) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_holds_to_our_rules(path: Path) -> None:
    assert _unsafe(_read(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_it_names_is_there(path: Path) -> None:
    assert _loose(_read(path)) == []


def test_the_tests_run_on_every_python_that_we_support() -> None:
    classifiers = (ROOT / "pyproject.toml").read_text("utf-8")
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', classifiers)
    assert _read(ROOT / ".github/workflows/ci.yaml")["jobs"]["test"]["strategy"]["matrix"]["python"] == supported


def test_a_broken_copy_is_caught() -> None:
    """Negative control."""
    path = ROOT / ".github/workflows/release.yaml"
    text = path.read_text("utf-8")

    def broken(old: str, new: str) -> tuple[dict[str, Any], str]:
        assert old in text
        changed = text.replace(old, new)
        return yaml.load(changed, Loader), changed

    for old, new in (
        ("timeout-minutes", "timeout-minute"),
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-latest"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7"),
        ("contents: read\n\nconc", "contents: write\n\nconc"),
        ("id-token: write", "id-tokens: write"),
    ):
        assert faults(broken(old, new)[0], FILE), (old, new)
    for old, new in (
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@" + "0" * 40),
        ("${{ github.token }}", "${{ secrets.TOKEN }}"),
        ("packages: write", "packages: read"),
        ("      id-token: write\n", ""),
        ("with: {persist-credentials: false}", "with: {persist-credentials: true}"),
        ('docker push "$IMAGE', 'docker push "${{ vars.IMAGE }}'),
        ('"${IMAGE%%/*}"', "ghcr.io"),
    ):
        assert _unsafe(*broken(old, new)), (old, new)
    for old, new in (
        ("needs: build", "needs: bild"),
        ("make dist", "make dst"),
        ("steps.push", "steps.pus"),
        ("image/Dockerfile", "Dockerfile"),
    ):
        assert _loose(broken(old, new)[0]), (old, new)
    assert _unsafe(copy.deepcopy(_read(path)), text) == []
