"""Rendering of kustomizations: by ``kubectl kustomize`` where it is, and by a renderer of our own for what we use.

Ours knows ``resources``, ``components``, ``patches`` (JSON 6902, by target), ``images`` and ``namespace``, and fails on
anything else, so that it never gives another answer in silence. Both are compared where both are.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images"}
_CLUSTER_WIDE = {"Namespace"}


def real() -> str:
    """Return why ``kubectl kustomize`` cannot be used here, or ""."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return "kubectl is not on PATH"
    done = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False)
    version = re.search(r"Kustomize Version: v(\d+)", done.stdout)
    if version is None or int(version[1]) < 5:
        return f"kubectl's kustomize is older than 5 or missing: {done.stdout.strip() or done.stderr.strip()}"
    return ""


def kubectl(folder: Path) -> list[Manifest]:
    """Return what ``kubectl kustomize`` makes of a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def render(folder: Path) -> list[Manifest]:
    """Return what our own renderer makes of a folder."""
    return _folder(folder, [])


def by_name(objects: list[Manifest]) -> dict[str, Manifest]:
    """Return objects by kind and name, each once."""
    found = {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}
    assert len(found) == len(objects), "an object stands there twice"
    return found


def _folder(folder: Path, before: list[Manifest]) -> list[Manifest]:
    """Apply one kustomization; a component works on what is there ``before`` it."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    unknown = set(said) - _KNOWN
    assert not unknown, f"{folder}: our renderer does not know {sorted(unknown)}"
    objects = list(before)
    for name in said.get("resources", ()):
        path = folder / name
        objects += _folder(path, []) if path.is_dir() else _load(path)
    for name in said.get("components", ()):
        objects = _folder(folder / name, objects)
    for patch in said.get("patches", ()):
        _patch(folder, objects, patch)
    for image in said.get("images", ()):
        _set_image(objects, image)
    if "namespace" in said:
        for each in objects:
            if each["kind"] not in _CLUSTER_WIDE:
                each["metadata"]["namespace"] = said["namespace"]
    return objects


def _load(path: Path) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]


def _patch(folder: Path, objects: list[Manifest], said: Manifest) -> None:
    assert set(said) <= {"path", "patch", "target"}, said
    text = said["patch"] if "patch" in said else (folder / said["path"]).read_text("utf-8")
    operations = yaml.safe_load(text)
    assert isinstance(operations, list), "our renderer knows JSON patches only"
    target = said["target"]
    assert set(target) <= {"kind", "name"}, target
    hit = [
        each
        for each in objects
        if each["kind"] == target["kind"] and re.fullmatch(target["name"], each["metadata"]["name"])
    ]
    assert hit, f"{folder}: a patch hits nothing: {target}"
    for each in hit:
        for operation in operations:
            _operate(each, copy.deepcopy(operation))


def _operate(target: Any, operation: Manifest) -> None:  # noqa: ANN401 - maps and lists in turn
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    match operation["op"]:
        case "add" if isinstance(target, list):
            target.insert(len(target) if last == "-" else int(last), operation["value"])
        case "add":
            target[last] = operation["value"]
        case "replace":
            assert last in target
            target[last] = operation["value"]
        case "remove":
            del target[last]
        case other:
            message = f"our renderer does not know the operation {other}"
            raise AssertionError(message)


def _set_image(objects: list[Manifest], image: Manifest) -> None:
    assert set(image) <= {"name", "newName", "newTag", "digest"}, image
    for container in (each for pod in pods(objects) for each in containers(pod)):
        name = re.split(r"[:@]", container["image"])[0]
        if name != image["name"]:
            continue
        new = str(image.get("newName", name))
        if "digest" in image:
            new += f"@{image['digest']}"
        elif "newTag" in image:
            new += f":{image['newTag']}"
        container["image"] = new


def pods(objects: list[Manifest]) -> list[Manifest]:
    """Return the pod specs of all objects that make pods."""
    return [
        each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}
    ]


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod, those that begin before it too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]
