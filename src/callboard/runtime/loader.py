"""From what the user typed to capabilities and actors: a module or a file, and a plain word when it fails."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType, find_actors, with_companions
from callboard.runtime.capability import Capability, find_capabilities
from callboard.runtime.errors import ActorDefinitionError, CallboardError, ModuleLoadError

T = TypeVar("T")

TRACE_FRAMES = 4
_OURS = Path(__file__).parents[1]


class Parts(Struct, frozen=True, kw_only=True):
    """What a worker serves: the capabilities and the actor classes of some modules, in the order of the targets."""

    capabilities: tuple[Capability[..., Any], ...] = ()
    actors: tuple[type[Actor], ...] = ()

    @property
    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the capabilities, and of the actor types with their companions."""
        actors = with_companions(self.actors)
        return frozenset(c.name for c in self.capabilities), frozenset(actor.actor_name for actor in actors)


def load_parts(targets: Sequence[str]) -> Parts:
    """Import every target and return the capabilities and actors they hold.

    The working directory, and the folder of a file, are put on ``sys.path``, as ``python -m`` and ``python FILE`` do.

    Args:
        targets: Dotted module names, or paths to ``.py`` files.

    Raises:
        ModuleLoadError: If one cannot be imported (the message ends with the last lines of its traceback), holds
            neither a capability nor an actor, or two hold one of the same name.
        ConfigError: If one module has two capabilities, or two actors, of the same name.
        ActorDefinitionError: If an actor's class cannot be used.
    """
    _add_path(Path.cwd())
    capabilities: dict[str, Capability[..., Any]] = {}
    actors: dict[str, type[Actor]] = {}
    owner: dict[tuple[str, str], str] = {}
    for target in dict.fromkeys(targets):
        module = load_module(target)
        mine, classes = find_capabilities(module), find_actors(module)
        if not mine and not classes:
            message = (
                f"{target} has no capability and no actor: put @capability above a function, or define an Actor "
                "class, at its top level"
            )
            raise ModuleLoadError(message)
        for capability in mine:
            _take(capabilities, capability.name, capability, what="a capability", target=target, owner=owner)
        for cls in classes:
            _prepare(cls, target)
            _take(actors, cls.actor_name, cls, what="an actor", target=target, owner=owner)
    return Parts(capabilities=tuple(capabilities.values()), actors=tuple(actors.values()))


def _prepare(cls: type[Actor], target: str) -> None:
    """Find what is wrong with a class here, where its module is known."""
    try:
        ActorType.of(cls)
    except ActorDefinitionError as error:
        message = f"{target}: {error}"
        raise ActorDefinitionError(message) from error


def _take(
    found: dict[str, T], name: str, part: T, *, what: str, target: str, owner: dict[tuple[str, str], str]
) -> None:
    if name in found and found[name] is not part:
        message = f"{target} and {owner[what, name]} both have {what} {name!r}: rename one"
        raise ModuleLoadError(message)
    found[name] = part
    owner[what, name] = target


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
        hint = f"; did you mean {target}.py?"
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
