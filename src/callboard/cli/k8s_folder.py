"""Manifests as files: written, read back, compared."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import yaml

from callboard.cli.k8s_pod import Manifest
from callboard.runtime.errors import ConfigError

HEAD: Final = "# Written by: callboard "
KUSTOMIZATION: Final = "kustomization.yaml"


def text(objects: Iterable[Manifest], *, words: Iterable[str] = ()) -> str:
    """Return objects as one YAML stream; ``words`` are the call that wrote them, kept in its first line."""
    head = f"{HEAD}{shlex.join(words)}\n" if words else ""
    parts = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True) for each in objects]
    return head + "---\n".join(parts)


def texts(files: Mapping[str, Iterable[Manifest]], *, words: Iterable[str]) -> dict[str, str]:
    """Return the text of each file of a folder; the one named ``kustomization.yaml`` says what wrote them."""
    kept = tuple(words)
    return {name: text(objects, words=kept if name == KUSTOMIZATION else ()) for name, objects in files.items()}


def write(folder: Path, wanted: Mapping[str, str]) -> None:
    """Write the files of a folder, and remove those of an earlier run that are not wanted any more.

    Raises:
        ConfigError: If the folder holds something that was not written by us.
    """
    if folder.exists() and any(folder.iterdir()) and written_by(folder) is None:
        message = f"{folder} holds files that callboard did not write; take an empty folder, or a new name"
        raise ConfigError(message)
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(_present(folder)) - set(wanted):
        (folder / name).unlink()
    for name, content in wanted.items():
        (folder / name).write_text(content, "utf-8")


def written_by(folder: Path) -> list[str] | None:
    """Return the words of the call that wrote a folder, None when it was not written by us."""
    try:
        first = (folder / KUSTOMIZATION).read_text("utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return shlex.split(first.removeprefix(HEAD)) if first.startswith(HEAD) else None


def compare(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Return the lines of a unified diff from the folder to what is wanted; empty when they are equal."""
    present = _present(folder)
    found: list[str] = []
    for name in sorted(set(present) | set(wanted)):
        old, new = present.get(name, ""), wanted.get(name, "")
        found += difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{folder}/{name}", f"rendered/{name}", lineterm=""
        )
    return found


def _present(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.glob("*.yaml") if path.is_file()}


def _as_lines(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Return text of several lines as a block, as people write it."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


class _Dumper(yaml.SafeDumper):
    """Lists stand under their key, indented, as people write them; nothing is an alias of something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        return super().increase_indent(flow, False)  # noqa: FBT003 - the library's signature

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - as above
        return True


_Dumper.add_representer(str, _as_lines)
