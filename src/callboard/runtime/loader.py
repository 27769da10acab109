"""From what the user typed to capabilities and actors: a module or a file, and a plain word when it fails."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType, find_actors, with_companions
from callboard.runtime.capability import Capability, find_capabilities
from callboard.runtime.errors import ActorDefinitionError, CallboardError, ModuleLoadError

TRACE_FRAMES = 4
GROUP = "callboard.agents"
"""Group of the entry points by which installed packages offer agents, actors and capabilities."""
INSTALLED = "@installed"
# In a folder of agents, and none themselves.
_NEVER = frozenset({"conftest.py", "setup.py", "noxfile.py"})
_OURS = Path(__file__).parents[1]


class Skipped(Struct, frozen=True, kw_only=True):
    """A file of a folder, or an entry point, that could not be used and was left out, and why."""

    name: str
    error: CallboardError


class Parts(Struct, frozen=True, kw_only=True):
    """What a worker serves: the capabilities and the actor classes of some modules, in the order of the targets.

    Attributes:
        skipped: What of folders and entry points could not be used.
        sources: Where each part comes from, as ``capability <name>`` or ``actor <name>``: file, module or entry point.
    """

    capabilities: tuple[Capability[..., Any], ...] = ()
    actors: tuple[type[Actor], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    sources: dict[str, str] = {}

    @property
    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the capabilities, and of the actor types with their companions."""
        actors = with_companions(self.actors)
        return frozenset(c.name for c in self.capabilities), frozenset(actor.actor_name for actor in actors)


def load_parts(targets: Sequence[str], *, whole: Collection[str] = ()) -> Parts:
    """Import every target and return the capabilities and actors they hold.

    The working directory, and the folder of a file, are put on ``sys.path``, as ``python -m`` and ``python FILE`` do.

    Args:
        targets: Dotted module names, paths to ``.py`` files, folders, or ``@installed`` for the entry points of the
            group ``callboard.agents``. Of a folder every ``.py`` file is taken but those of tests and those that begin
            with ``_``. What cannot be used of a folder, or among the entry points, is left out and told in ``skipped``.
        whole: Names of such parts that must not be left out: they could be used before.

    Raises:
        ModuleLoadError: If one cannot be imported (the message ends with the last lines of its traceback), holds
            neither a capability nor an actor, or two hold one of the same name.
        ConfigError: If one module has two capabilities, or two actors, of the same name.
        ActorDefinitionError: If an actor's class cannot be used.
    """
    _add_path(Path.cwd())
    found = _Found(whole)
    for target in dict.fromkeys(targets):
        if target == INSTALLED:
            found.take_installed()
        elif is_folder(target):
            found.take_folder(Path(target))
        elif not found.take(target, load_module(target)):
            raise ModuleLoadError(_nothing(target))
    return found.parts()


def is_folder(target: str) -> bool:
    """Return whether a target names a folder of files, and no package: it is spelled as a path, or no package."""
    path = Path(target)
    is_path = os.sep in target or target in (".", "..")
    return path.is_dir() and (is_path or not (path / "__init__.py").exists())


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that are loaded, by name."""
    return sorted(
        path
        for path in folder.glob("*.py")
        if not path.name.startswith(("_", "test_", ".")) and path.name not in _NEVER and path.is_file()
    )


class _Found:
    """What was found so far."""

    def __init__(self, whole: Collection[str]) -> None:
        self._whole = whole
        self._capabilities: dict[str, Capability[..., Any]] = {}
        self._actors: dict[str, type[Actor]] = {}
        self._owner: dict[str, str] = {}
        self._skipped: list[Skipped] = []

    def parts(self) -> Parts:
        return Parts(
            capabilities=tuple(self._capabilities.values()),
            actors=tuple(self._actors.values()),
            skipped=tuple(self._skipped),
            sources=dict(self._owner),
        )

    def take(self, target: str, module: ModuleType) -> bool:
        """Take what a module holds, or nothing of it; return whether it holds anything.

        Raises:
            CallboardError: As ``load_parts``.
        """
        mine, classes = find_capabilities(module), find_actors(module)
        for cls in classes:
            _prepare(cls, target)
        parts: list[tuple[str, str, object]] = [("capability", each.name, each) for each in mine]
        parts += [("actor", each.actor_name, each) for each in classes]
        for what, name, part in parts:
            self._check(what, name, part, target)
        for what, name, _ in parts:
            self._owner.setdefault(f"{what} {name}", target)
        self._capabilities |= {each.name: each for each in mine}
        self._actors |= {each.actor_name: each for each in classes}
        return bool(parts)

    def take_folder(self, folder: Path) -> None:
        files = files_of(folder)
        taken = [path for path in files if self._try(str(path), partial(load_module, str(path)))]
        if not taken:
            self._fail_empty(f"{folder} has {len(files)} .py file{'s' * (len(files) != 1)} and")

    def take_installed(self) -> None:
        points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
        taken = [point for point in points if self._try(f"{GROUP}:{point.name}", partial(_loaded, point))]
        if not taken:
            self._fail_empty(f"no installed package offers agents (entry points of the group {GROUP}), or each one")

    def _try(self, name: str, load: Callable[[], ModuleType]) -> bool:
        try:
            return self.take(name, load())
        except CallboardError as error:
            if name in self._whole:
                raise
            self._skipped.append(Skipped(name=name, error=error))
            return False

    def _fail_empty(self, what: str) -> None:
        if self._skipped:
            raise self._skipped[-1].error
        raise ModuleLoadError(_nothing(what))

    def _check(self, what: str, name: str, part: object, target: str) -> None:
        known = self._capabilities.get(name) if what == "capability" else self._actors.get(name)
        if known is not None and known is not part:
            article = "a" if what == "capability" else "an"
            owner = self._owner[f"{what} {name}"]
            message = f"{target} and {owner} both have {article} {what} {name!r}: rename one"
            raise ModuleLoadError(message)


def _nothing(what: str) -> str:
    return (
        f"{what} has no capability and no actor: put @capability above a function, or define an Actor class, at its "
        "top level"
    )


def _prepare(cls: type[Actor], target: str) -> None:
    """Find what is wrong with a class here, where its module is known."""
    try:
        ActorType.of(cls)
    except ActorDefinitionError as error:
        message = f"{target}: {error}"
        raise ActorDefinitionError(message) from error


def _loaded(point: EntryPoint) -> ModuleType:
    """Return a module that holds what an entry point names: a module, an actor's class or a capability.

    Raises:
        ModuleLoadError: If it cannot be imported.
    """
    name = f"{GROUP}:{point.name}"
    try:
        found = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ModuleLoadError(_failed(name, error)) from error
    if isinstance(found, ModuleType):
        return found
    holder = ModuleType(getattr(found, "__module__", name))
    setattr(holder, point.name.replace("-", "_"), found)
    return holder


def load_module(target: str) -> ModuleType:
    """Import one dotted module or file.

    Raises:
        ModuleLoadError: If it does not exist or its code fails; ``SystemExit`` at import counts as failing.
    """
    is_file = target.endswith(".py") or os.sep in target
    try:
        return _load_file(Path(target)) if is_file else importlib.import_module(target)
    except ModuleLoadError:
        raise
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and (target == error.name or target.startswith(f"{error.name}.")):
            raise ModuleLoadError(_absent(target, error.name)) from error
        raise ModuleLoadError(_failed(target, error)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # whatever a user's module does at import has one answer: what failed, and where
        raise ModuleLoadError(_failed(target, error)) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        message = f"{path} does not exist" if not path.is_dir() else f"{path} is a folder: name a .py file or a module"
        raise ModuleLoadError(message)
    _add_path(path.resolve().parent)
    known = sys.modules.get(path.stem)
    if known is not None and _is_at(known, path):
        # another file of the folder imports it
        return known
    # a file called json.py must not take the place of the real one
    name = path.stem if path.stem not in sys.modules and path.stem.isidentifier() else f"callboard_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        message = f"{path} is not a Python file: its name must end in .py"
        raise ModuleLoadError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_at(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).resolve() == path.resolve()


def _add_path(folder: Path) -> None:
    text = str(folder)
    if text not in sys.path:
        sys.path.insert(0, text)


def _absent(target: str, missing: str) -> str:
    hint = ""
    as_file = Path(*target.split(".")).with_suffix(".py")
    if target != missing:
        hint = f" (there is no {missing!r})"
    elif not as_file.exists() and Path(f"{target}.py").exists():
        return f"there is no module {target!r} here; did you mean {target}.py?"
    return f"there is no module {target!r} here{hint}: run from the folder that holds it, or give the path of its file"


def _failed(target: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        head = f"{target} ended the program while it was imported (SystemExit: {error.code}); guard it with __name__"
    else:
        head = f"{target} cannot be imported: {type(error).__name__}: {error}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    if isinstance(error, CallboardError):
        # the message says what is wrong with the class or function; the lines that found it are ours
        frames = [frame for frame in frames if not Path(frame.filename).is_relative_to(_OURS)] or frames
    where = "".join(traceback.format_list(frames[-TRACE_FRAMES:])).rstrip()
    return f"{head}\n{where}" if where else head
