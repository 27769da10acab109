"""The image of Callboard, built by an engine of a test's own: from this machine's Python and without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from tests.support.engine import Engine, EngineRefused, libraries, make_folders, modules

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "image" / "Dockerfile"
BASE = "callboard-base-test:1"
IMAGE = "callboard:test"
LOCKS = ("requirements-image-build.lock", "requirements-image.lock")
_PROGRAMS = ("sh", "mkdir", "chown")
_LEFT_OUT = re.compile(
    r"/(__pycache__|test|tests|idlelib|site-packages|tkinter|lib2to3|turtledemo|config-[^/]*)(/|$)|\.a$"
)
_TIMEOUT_S = 1500


class Docker:
    """The command ``docker``, talking to one engine, as the builder that every engine has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._binary = shutil.which("docker")
        if self._binary is None:
            raise EngineRefused("no docker command: install docker.io or docker-cli")  # noqa: EM101 - a reason to skip

    def run(self, *arguments: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        env = {"PATH": os.environ["PATH"], "DOCKER_HOST": self._engine.url, "DOCKER_BUILDKIT": "0"}
        env["HOME"] = env["DOCKER_CONFIG"] = str(self._engine.folder)
        done = subprocess.run(
            [str(self._binary), *arguments],
            env=env,
            input=text,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"docker {' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done

    def import_base(self, folder: Path) -> None:
        """Make the base image of this machine's Python, its pip, a shell and the libraries that they need."""
        tree = folder / "base.tar"
        _write_base(tree)
        self.run("import", str(tree), BASE)
        tree.unlink()

    def build(self, context: Path) -> None:
        """Build the image from a copy of the sources that has the wheels."""
        arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/build", "VERSION": "test"}
        given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        where = ["-f", str(context / "deploy/image/Dockerfile"), "-t", IMAGE, str(context)]
        self.run("build", "--network=none", "--force-rm", *given, *where)

    def sent(self, context: Path) -> list[str]:
        """Return what a build of the context is given, by path."""
        self.run(
            "build",
            "--network=none",
            "-t",
            "context:test",
            "-f",
            "-",
            str(context),
            text=f"FROM {BASE}\nCOPY . /sent\n",
        )
        code = "import os; print(*(os.path.join(d, f)[6:] for d, _, fs in os.walk('/sent') for f in fs), sep='\\n')"
        listed = self.run("run", "--rm", "--network=none", "context:test", "/usr/local/bin/python3", "-c", code)
        return listed.stdout.split()


def make_context(folder: Path) -> Path:
    """Copy what a builder is given, and fetch the wheels of the locks with pip.

    Raises:
        EngineRefused: If the wheels cannot be had here.
    """
    context = folder / "context"
    for name in ("src", "deploy/image"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "pyproject.toml", "README.md", "LICENSE", *LOCKS):
        shutil.copy(ROOT / name, context / name)
    (context / "secret.txt").write_text("must not reach the builder")
    locks = [part for name in LOCKS for part in ("-r", str(ROOT / name))]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    done = subprocess.run(
        [*command, *locks, "-d", str(context / "wheels")],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise EngineRefused(f"no wheels: {done.stderr.strip()[-300:]}")  # noqa: EM102 - a reason to skip
    return context


def _write_base(tree: Path) -> None:
    """Write a root file system laid out as the official Python images are."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    executable = Path(sys.executable).resolve()
    programs = [Path(found) for name in _PROGRAMS if (found := shutil.which(name))]
    pip = importlib.util.find_spec("pip")
    if pip is None or pip.origin is None:
        raise EngineRefused("this Python has no pip")  # noqa: EM101 - a reason to skip
    needed = sorted(libraries([executable, *programs, *modules(stdlib), *_extensions()]))
    name = stdlib.name
    with tarfile.open(tree, "w") as tar:
        folders = {str(Path(each).parent)[1:] for each in needed}
        make_folders(tar, "bin", "etc", "proc", "sys", "dev", "usr/local/bin", "usr/local/lib", *sorted(folders))
        tar.add(executable, f"usr/local/bin/{name}")
        _link(tar, "usr/local/bin/python3", name)
        tar.add(stdlib, f"usr/local/lib/{name}", filter=lambda each: None if _LEFT_OUT.search(each.name) else each)
        _folder(tar, f"usr/local/lib/{name}/site-packages")
        tar.add(Path(pip.origin).parent, f"usr/local/lib/{name}/site-packages/pip")
        for library in needed:
            tar.add(os.path.realpath(library), library.lstrip("/"))
        for program in programs:
            tar.add(program.resolve(), f"bin/{program.name}")


def _extensions() -> list[Path]:
    """Return compiled modules of installed packages; the wheels need the same libraries."""
    return sorted(Path(sysconfig.get_path("platlib")).rglob("*.so"))


def _folder(tar: tarfile.TarFile, name: str) -> None:
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(folder)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, target
    tar.addfile(link)
