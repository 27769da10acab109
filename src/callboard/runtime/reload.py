"""Hot reload while developing: watch the source files, import them anew, hand over what they hold.

A file is looked at by its time and size, three times a second; nothing is installed in the kernel. New code is taken
only as a whole: when it cannot be imported the old modules go back to where they were.
"""

from __future__ import annotations

import importlib
import linecache
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar

from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import CallboardError
from callboard.runtime.loader import is_folder

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)

POLL_S = 0.3
# An editor may write a file in pieces: it is read when it has not changed for this long.
CALM_S = 0.1
_FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
_OWN_PACKAGE = __name__.partition(".")[0]

Stamps = dict[Path, tuple[int, int]]


class Swappable(Protocol[P_contra]):
    """Whatever can go on with other code from its next message on."""

    def swap(self, parts: P_contra, /) -> None:
        """Use ``parts`` from the next message on; what runs finishes as it began.

        Raises:
            CallboardError: If they cannot be used; then the old ones go on.
        """
        ...


class Sources:
    """The source files of some modules: those under one folder, without what is installed there.

    Attributes:
        folder: Where they lie.
        is_wide: Whether every Python file of the folder counts: what failed may wait for one that is not imported yet.
    """

    def __init__(self, targets: Sequence[str], *, cwd: Path) -> None:
        """Watch the first target that is a folder, the folder of the first that is a file, else ``cwd``.

        Of a target that is a folder every Python file counts always.
        """
        files = [Path(target) for target in targets if target.endswith(".py")]
        folders = [Path(target) for target in targets if is_folder(target)]
        self.folder = next(iter([*folders, *(file.parent for file in files)]), cwd).resolve()
        self.is_wide = False
        self._folders = [folder.resolve() for folder in folders]
        self._named = {path.resolve() for path in files}

    def modules(self) -> dict[str, ModuleType]:
        """Return the imported modules that lie there, by name."""
        found = {}
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            is_ours = name == "__main__" or name.partition(".")[0] == _OWN_PACKAGE
            if isinstance(path, str) and not is_ours and self._is_here(Path(path)):
                found[name] = module
        return found

    def stamps(self) -> Stamps:
        """Return time and size of every file in use; a missing file is left out."""
        files = {Path(module.__file__).resolve() for module in self.modules().values() if module.__file__}
        if self.is_wide:
            files.update(path.resolve() for path in self.folder.glob("*.py"))
        files.update(path for folder in self._folders for path in folder.glob("*.py"))
        return _stamps(files | self._named)

    def _is_here(self, path: Path) -> bool:
        try:
            parts = path.resolve().relative_to(self.folder).parts
        except ValueError:
            return False
        return not any(part in _FOREIGN_FOLDERS or part.startswith(".") for part in parts)


class Reloader(Generic[P]):
    """Loads what some targets hold, and again whenever a file of theirs changes."""

    def __init__(
        self,
        sources: Sources,
        load: Callable[[], P],
        *,
        clock: Clock = SYSTEM_CLOCK,
        poll_s: float = POLL_S,
    ) -> None:
        """Prepare.

        Args:
            sources: What to watch.
            load: Imports the targets and returns what they hold.
            clock: Time.
            poll_s: How often to look at the files.
        """
        self._sources = sources
        self._load = load
        self._clock = clock
        self._poll_s = poll_s
        self._seen: Stamps = {}

    def load(self) -> P:
        """Import the targets for the first time.

        Raises:
            ModuleLoadError: If that fails.
        """
        found = self._fresh()
        self._seen = self._sources.stamps()
        return found

    async def run(
        self,
        apply: Callable[[P], Awaitable[None]],
        *,
        reloaded: Callable[[list[Path]], None],
        failed: Callable[[list[Path], CallboardError], None],
    ) -> None:
        """Watch for ever; cancel it to end.

        Args:
            apply: Takes the new parts; what it raises counts as a failure of the new code.
            reloaded: Told after new code was taken, with the files that changed.
            failed: Told when it was not; the old code goes on.
        """
        while True:
            await self._clock.sleep(self._poll_s)
            changed = await self._changed()
            if not changed:
                continue
            before = self._sources.modules()
            try:
                await apply(self._fresh())
            except CallboardError as error:
                self._restore(before)
                self._sources.is_wide = True
                failed(changed, error)
            else:
                self._sources.is_wide = False
                reloaded(changed)
            # what changed while it was being imported is seen next time
            self._seen = {path: self._seen.get(path, stamp) for path, stamp in self._sources.stamps().items()}

    async def _changed(self) -> list[Path]:
        """Return the files that differ from what was loaded, once they have stopped changing."""
        now = self._sources.stamps()
        if now == self._seen:
            return []
        while True:
            await self._clock.sleep(CALM_S)
            later = self._sources.stamps()
            if later == now:
                break
            now = later
        changed = sorted(path for path in {*now, *self._seen} if now.get(path) != self._seen.get(path))
        self._seen = now
        return changed

    def _fresh(self) -> P:
        """Import everything anew; on failure the modules are as they were."""
        before = self._sources.modules()
        for name in before:
            del sys.modules[name]
        importlib.invalidate_caches()
        linecache.checkcache()
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            # compiled files are told apart by whole seconds: two edits within one would look the same
            return self._load()
        except BaseException:
            self._restore(before)
            raise
        finally:
            sys.dont_write_bytecode = writes

    def _restore(self, before: dict[str, ModuleType]) -> None:
        for name in self._sources.modules():
            del sys.modules[name]
        sys.modules.update(before)


def _stamps(paths: Iterable[Path]) -> Stamps:
    found: Stamps = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found[path] = (stat.st_mtime_ns, stat.st_size)
    return found
