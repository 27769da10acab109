"""A Docker engine of a test's own: as root, without a bridge, and with an image made of this machine's Python."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

IMAGE = "callboard-sandbox-test:1"
PYTHON = "/py/bin/python3"
_START_S = 60.0
_POLL_S = 0.05
_NOT_NEEDED = re.compile(
    r"/(__pycache__|test|tests|idlelib|site-packages|ensurepip|tkinter|lib2to3|config-[^/]*|turtledemo|_tkinter.*|_test.*|distutils)(/|$)|\.a$"
)


class EngineRefused(Exception):  # noqa: N818 - a reason to skip, not an error of the product
    """No engine can be had here, and why."""


class Engine:
    """One dockerd, ended by its own process id."""

    def __init__(self) -> None:
        # Short, because the path of a socket may have 107 bytes only.
        self.folder = Path(tempfile.mkdtemp(prefix="cb-engine-", dir="/tmp"))
        self.socket = self.folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text("utf-8", "replace")
        return ""

    def start(self) -> None:
        """Start it, and wait until it answers."""
        binary = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if os.geteuid() != 0:
            raise EngineRefused("not root")  # noqa: EM101 - a reason to skip
        if binary is None:
            raise EngineRefused("no dockerd: install docker.io")  # noqa: EM101 - a reason to skip
        command = [binary, "--data-root", self._in("data"), "--exec-root", self._in("exec"), "-p", self._in("pid")]
        command += ["-H", self.url, "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineRefused(f"dockerd does not start: {self.log.strip()[-300:]}")  # noqa: EM102 - a reason to skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)

    def load(self) -> None:
        """Make the image."""
        with self._client() as client:
            where = {"fromSrc": "-", "repo": IMAGE.partition(":")[0], "tag": IMAGE.partition(":")[2]}
            answer = client.post("/images/create", params=where, content=_tree(), timeout=120)
        answer.raise_for_status()
        if "error" in answer.text:
            raise EngineRefused(f"no image: {answer.text[-300:]}")  # noqa: EM102 - a reason to skip

    def containers(self) -> list[str]:
        """Return the names of all containers."""
        with self._client() as client:
            return [name for each in client.get("/containers/json", params={"all": 1}).json() for name in each["Names"]]

    def kill(self) -> None:
        """Kill it without a word, as the kernel would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_START_S)

    def stop(self) -> None:
        """End it, and take its folder away."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(_START_S)
        # What a killed engine leaves: its containerd, the shims of its containers, and mounts below its folder.
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and bytes(self.folder) in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        mounted = Path("/proc/self/mounts").read_text("utf-8").splitlines()
        for place in sorted((line.split()[1] for line in mounted), reverse=True):
            if Path(place).is_relative_to(self.folder):
                subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _in(self, name: str) -> str:
        return str(self.folder / name)

    def _client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=10)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            with contextlib.suppress(httpx.HTTPError), self._client() as client:
                return client.get("/_ping").is_success
        return False


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Give a running engine that has the image.

    Raises:
        EngineRefused: If none can be had here.
    """
    made = Engine()
    try:
        made.start()
        made.load()
        yield made
    finally:
        made.stop()


def _tree() -> bytes:
    """Return a root file system with this Python and, where there is one, a static busybox."""
    where = Path(sysconfig.get_path("stdlib"))
    executable = Path(sys.executable).resolve()
    needed = sorted(libraries([executable, *modules(where)]))
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        make_folders(tar, "bin", "etc", "proc", "py/bin", "py/lib", *(str(Path(name).parent)[1:] for name in needed))
        tar.add(executable, PYTHON[1:])
        tar.add(where, f"py/lib/{where.name}", filter=lambda each: None if _NOT_NEEDED.search(each.name) else each)
        for library in needed:
            tar.add(os.path.realpath(library), library.lstrip("/"))
        busybox = shutil.which("busybox")
        for name in ("busybox", "sh", "true", "cat", "id") if busybox else ():
            tar.add(str(busybox), f"bin/{name}")
        if not busybox:
            true = b"#!" + PYTHON.encode() + b"\n"
            info = tarfile.TarInfo("bin/true")
            info.size, info.mode = len(true), 0o755
            tar.addfile(info, io.BytesIO(true))
    return made.getvalue()


def modules(stdlib: Path) -> list[Path]:
    """Return the compiled modules of the standard library, without those for its own tests."""
    return [each for each in (stdlib / "lib-dynload").glob("*.so") if not _NOT_NEEDED.search(f"/{each.name}")]


def make_folders(tar: tarfile.TarFile, *names: str) -> None:
    """Make folders that everybody may enter; the engine would make missing ones for root alone."""
    wanted = {str(each) for name in names for each in (Path(name), *Path(name).parents)} - {"."}
    for name in (*sorted(wanted), "tmp"):
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        tar.addfile(folder)


def libraries(files: list[Path]) -> set[str]:
    """Return the shared libraries that they need."""
    said = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, flags=re.MULTILINE))
