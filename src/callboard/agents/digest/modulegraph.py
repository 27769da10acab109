"""Who imports whom among the Python files of a folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One Python module: the modules of the same folder that it imports, and those that import it (as paths)."""

    path: str
    imports: list[str]
    imported_by: list[str]


class Graph(NamedTuple):
    """All modules with a link, most connected first; and packages from outside with how many files use them."""

    modules: list[Module]
    outside: list[tuple[str, int]]


def module_graph(imports: Mapping[str, Sequence[str]]) -> Graph:
    """Link Python files by their imports.

    A dotted name is looked up as the longest tail of a file's path that fits, so ``a.b`` finds ``src/a/b.py`` without
    being told where the import root is; a name that fits several files equally is linked to the nearest one.

    Args:
        imports: Dotted names by path, as `Digest.imports` has them.
    """
    by_name = _names(imports)
    forward: dict[str, set[str]] = defaultdict(set)
    back: dict[str, set[str]] = defaultdict(set)
    outside: Counter[str] = Counter()
    for path, names in sorted(imports.items()):
        strangers: set[str] = set()
        for name in names:
            target = _resolve(name, path, by_name)
            if target and target != path:
                forward[path].add(target)
                back[target].add(path)
            elif not target and not name.startswith("."):
                strangers.add(name.partition(".")[0])
        outside.update(strangers)
    modules = [
        Module(path=path, imports=sorted(forward[path]), imported_by=sorted(back[path]))
        for path in sorted(imports)
        if forward[path] or back[path]
    ]
    modules.sort(key=lambda module: (-len(module.imported_by), -len(module.imports), module.path))
    return Graph(modules, sorted(outside.items(), key=lambda item: (-item[1], item[0])))


def _names(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return for every tail of every module's dotted name the files that bear it."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        parts = path.rpartition(".")[0].split("/")
        if parts[-1] == "__init__":
            parts.pop()
        for begin in range(len(parts)):
            by_name[".".join(parts[begin:])].append(path)
    return by_name


def _resolve(name: str, path: str, by_name: Mapping[str, Sequence[str]]) -> str | None:
    if name.startswith("."):
        tail = name.lstrip(".")
        folder = path.split("/")[: -(len(name) - len(tail))]
        name = ".".join([*folder, tail]) if tail else ".".join(folder)
    # ``from a.b import c`` was kept as a.b.c; where no module has that name, it is the thing c in a.b.
    for candidate in (name, name.rpartition(".")[0]):
        found = by_name.get(candidate, ()) if candidate else ()
        if "." not in candidate:
            found = [other for other in found if _is_top(candidate, other)]
        if found:
            return min(found, key=lambda other: (-_shared(other, path), len(other), other))
    return None


def _is_top(name: str, path: str) -> bool:
    """Say whether a one-word name is a top-level package or module: ``json`` is not ``deep/folder/json.py``."""
    return path in {f"{name}.py", f"{name}/__init__.py", f"src/{name}.py", f"src/{name}/__init__.py"}


def _shared(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        count += 1
    return count
