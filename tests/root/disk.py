"""Disks that a test makes: one whose power can be cut, one that is soon full; and a flipped bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.root.quarters import Refused, enter, need, run

Kind = Literal["ext4", "xfs"]
_MAKE: dict[Kind, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_MIB = 1 << 20


class LoopDisk:
    """A filesystem in a file, mounted at ``at``; unmounted and removed at the end of its block.

    ``cut`` does what a power cut does: everything that the filesystem has not written to the disk is gone. The blocks
    that it has written stay, whether or not the machine below has synced them.
    """

    def __init__(self, at: Path, *, kind: Kind = "ext4", mib: int = 512) -> None:
        self.at = at
        self.cuts = 0
        self._image = at.with_name(f"{at.name}.img")
        self._kind = kind
        self._mib = mib

    def __enter__(self) -> Self:
        self.at.mkdir(parents=True, exist_ok=True)
        try:
            with self._image.open("wb") as file:
                file.truncate(self._mib * _MIB)
            run(*_MAKE[self._kind], str(self._image))
            self._mount()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def cut(self) -> None:
        """Cut the power: from here on nothing reaches the disk, and every access fails."""
        self.cuts += 1
        run("xfs_io", "-x", "-c", "shutdown", str(self.at))

    def settle(self) -> None:
        """Write what is in memory to the disk, as the system does by itself within half a minute."""
        run("sync", "--file-system", str(self.at))

    def restore(self) -> None:
        """Let the power come back: mount what is on the disk. Whoever had files open must have ended."""
        self._unmount()
        self._mount()

    def _mount(self) -> None:
        run("mount", "-o", "loop", str(self._image), str(self.at))

    def _unmount(self) -> None:
        try:
            run("umount", str(self.at))
        except Refused:
            run("umount", "-l", str(self.at))

    def _remove(self) -> None:
        if os.path.ismount(self.at):
            self._unmount()
        self._image.unlink(missing_ok=True)


class TinyDisk:
    """A tmpfs of ``mib`` at ``at`` that is soon full; ``grow`` gives it more room."""

    def __init__(self, at: Path, *, mib: int) -> None:
        self.at = at
        self._mib = mib

    def __enter__(self) -> Self:
        self.at.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={self._mib}m", "tmpfs", str(self.at))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Refused):
            run("umount", "-l", str(self.at))

    def grow(self, mib: int) -> None:
        """Give it more room, while it is in use."""
        run("mount", "-o", f"remount,size={mib}m", str(self.at))


def probe_power_cut(scratch: Path, kind: Kind) -> str | None:
    """Cut a small disk's power once; return why that is impossible here, None when it works."""
    try:
        _enter()
        need(_MAKE[kind][0], "xfs_io", "mount", "umount", "losetup")
        run("losetup", "--find")
        # the smallest that mkfs.xfs makes
        with LoopDisk(scratch / f"probe-{kind}", kind=kind, mib=64 if kind == "ext4" else 300) as disk:
            disk.cut()
            disk.restore()
    except (Refused, OSError) as error:
        return str(error)
    return None


def probe_full(scratch: Path) -> str | None:
    """Fill a tmpfs once; return why that is impossible here, None when it works."""
    try:
        _enter()
        need("mount", "umount")
        with TinyDisk(scratch / "probe-tmpfs", mib=1) as disk:
            try:
                (disk.at / "all").write_bytes(bytes(2 * _MIB))
            except OSError:
                return None
            return "a tmpfs takes more than its size"
    except (Refused, OSError) as error:
        return str(error)


def blocks(store: Path, stream: str) -> list[Path]:
    """Return a stream's block files in a server's store, oldest first."""
    found = store.glob(f"jetstream/*/streams/{stream}/msgs/*.blk")
    return sorted(found, key=lambda path: int(path.stem))


def flip_bit(path: Path, *, share: float = 0.5) -> int:
    """Flip one bit at ``share`` of a file's length; return the place of its byte."""
    data = bytearray(path.read_bytes())
    place = int(len(data) * share)
    data[place] ^= 1 << 3
    path.write_bytes(data)
    return place


@contextlib.contextmanager
def mounted(disks: list[LoopDisk]) -> Iterator[list[LoopDisk]]:
    """Mount all of them; whatever happens, all are removed at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(disk) for disk in disks]


def _enter() -> None:
    reason = enter()
    if reason is not None:
        raise Refused(reason)
