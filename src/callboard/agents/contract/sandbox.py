"""The contract of the sandbox port: a class of tests that every sandbox inherits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox.base import Job, Limits, Ran, Sandbox
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import InputError

MIB = 1 << 20
LIMITS = Limits(time_s=30.0, memory_bytes=256 * MIB, processes=24)


def survivors(name: str) -> list[int]:
    """Return the processes of this machine that bear a name among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if name.encode() in words:
                    found.append(int(entry.name))
    return found


class SandboxContract:
    """What every sandbox promises; a class of tests inherits it and gives ``make``.

    ::

        class TestMine(SandboxContract):
            def make(self) -> Sandbox:
                return MySandbox()

    Override the fixtures ``folder`` and ``python`` where the folder of a run, or Python inside of the sandbox, lies
    elsewhere. Linux only: it looks for processes in ``/proc``.
    """

    def make(self) -> Sandbox:
        """Return a sandbox for one test.

        Raises:
            InputError: If the class does not say.
        """
        message = f"{type(self).__name__} gives no sandbox: give it `make`, or a fixture `sandbox`"
        raise InputError(message)

    @pytest_asyncio.fixture
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """Give a sandbox, and close it afterwards."""
        made = self.make()
        yield made
        await made.close()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Give the folder of a run."""
        made = tmp_path / "folder"
        made.mkdir()
        return made

    @pytest.fixture
    def python(self) -> str:
        """Return how Python is called inside."""
        return sys.executable

    async def run(
        self, sandbox: Sandbox, folder: Path, argv: Sequence[str], *, data: bytes = b"", limits: Limits = LIMITS
    ) -> Ran:
        return await sandbox.run(Job(argv=argv, folder=folder, input=data, limits=limits))

    async def test_it_says_that_it_works(self, sandbox: Sandbox) -> None:
        await sandbox.check()

    async def test_a_program_gets_its_input_and_gives_its_output(
        self, sandbox: Sandbox, folder: Path, python: str
    ) -> None:
        code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); print('e', file=sys.stderr)"
        ran = await self.run(sandbox, folder, [python, "-c", code], data=b"abc" * 100_000)
        assert (ran.status, ran.stdout, ran.stderr) == (0, b"cba" * 100_000, b"e\n")
        assert ran.limit == ""
        assert not ran.is_cut
        assert ran.took_s > 0

    async def test_a_program_that_reads_nothing_is_no_trouble(
        self, sandbox: Sandbox, folder: Path, python: str
    ) -> None:
        ran = await self.run(sandbox, folder, [python, "-c", "print(1)"], data=b"x" * MIB)
        assert (ran.status, ran.stdout) == (0, b"1\n")

    async def test_a_status_is_told(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        ran = await self.run(sandbox, folder, [python, "-c", "raise SystemExit(7)"])
        assert ran.status == 7

    async def test_a_signal_is_told(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        code = "import os; pid = os.fork(); pid or os.kill(os.getpid(), 9); print(os.waitpid(pid, 0)[1])"
        ran = await self.run(sandbox, folder, [python, "-c", code])
        assert ran.stdout == b"9\n"

    async def test_binary_output_comes_as_it_is(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 100)"
        ran = await self.run(sandbox, folder, [python, "-c", code])
        assert ran.stdout == bytes(range(256)) * 100

    async def test_no_shell_reads_arguments(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        words = [
            "; touch owned",
            "$(touch owned)",
            "`touch owned`",
            "&& touch owned",
            "*",
            "~",
            "'\"\\",
            "",
            "--",
            "ä€\n",
        ]
        code = "import sys; print(ascii(sys.argv[1:]))"
        ran = await self.run(sandbox, folder, [python, "-c", code, *words])
        assert ran.stdout.decode().strip() == ascii(words)
        assert not (folder / "owned").exists()

    @pytest.mark.parametrize("argv", [[], [""], ["a\0b"], ["a", "b\0c"], "ls -l", ["x", "\ud800"]])
    async def test_what_is_no_command_is_refused(self, sandbox: Sandbox, folder: Path, argv: Sequence[str]) -> None:
        with pytest.raises(SandboxError):
            await self.run(sandbox, folder, argv)

    async def test_a_program_that_is_not_there_is_an_error(self, sandbox: Sandbox, folder: Path) -> None:
        with pytest.raises(SandboxError, match="no-such-program"):
            await self.run(sandbox, folder, ["no-such-program"])

    async def test_it_works_in_its_folder_and_may_write_it(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        code = "import os; print(os.getcwd(), file=open('made', 'w')); print(os.getcwd())"
        made = folder / "made"
        ran = await self.run(sandbox, folder, [python, "-c", code])
        assert ran.status == 0, ran
        assert ran.stdout.decode() == f"{folder}\n" == made.read_text("utf-8")

    async def test_the_environment_is_clean(
        self, sandbox: Sandbox, folder: Path, python: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CB_TEST_CANARY", "canary")
        code = "import os; print(sorted(os.environ))"
        ran = await sandbox.run(Job(argv=[python, "-c", code], folder=folder, env={"MINE": "1"}, limits=LIMITS))
        found = set(ran.stdout.decode().strip("[]\n").replace("'", "").split(", "))
        allowed = {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "MINE", "PWD", "HOSTNAME", "LC_CTYPE"}
        assert "MINE" in found
        assert found <= allowed

    async def test_output_is_cut_and_its_beginning_kept(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        code = "import sys; sys.stdout.write('a' * 10); sys.stdout.write('b' * 3000000)"
        ran = await self.run(sandbox, folder, [python, "-c", code], limits=Limits(output_bytes=1000, time_s=30))
        assert ran.stdout == b"a" * 10 + b"b" * 990
        assert ran.is_cut
        assert ran.status == 0

    async def test_time_is_up(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        ran = await self.run(sandbox, folder, [python, "-c", "import time; time.sleep(60)"], limits=Limits(time_s=1.0))
        assert (ran.status, ran.limit) == (-9, "time")

    async def test_a_fork_bomb_ends(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        word = f"bomb-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        # each fork takes a token: should nothing hold it, the machine has some hundreds of processes more and lives
        code = "import os\nout, into = os.pipe()\nos.write(into, b'x' * 400)\nwhile os.read(out, 1):\n    os.fork()"
        limits = Limits(time_s=5.0, processes=24)
        ran = await self.run(sandbox, folder, [python, "-c", code, word], limits=limits)
        assert ran.status != 0
        assert survivors(word) == []

    async def test_cancelling_kills_it_before_it_returns(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        word = f"cancelled-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        code = "open('began', 'w').close(); import time; time.sleep(120)"
        running = asyncio.create_task(self.run(sandbox, folder, [python, "-c", code, word]))
        await eventually((folder / "began").exists, within_s=30)
        assert survivors(word)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert survivors(word) == []

    async def test_a_network_that_nobody_allowed_is_refused(self, sandbox: Sandbox, folder: Path) -> None:
        with pytest.raises(SandboxError, match=r"example\.com"):
            await self.run(sandbox, folder, ["true"], limits=Limits(network=("example.com",)))

    async def test_runs_beside_each_other_do_not_mix(self, sandbox: Sandbox, folder: Path, python: str) -> None:
        code = "import sys; print(sys.argv[1])"
        runs = [self.run(sandbox, folder, [python, "-c", code, str(n)]) for n in range(4)]
        assert [ran.stdout for ran in await asyncio.gather(*runs)] == [f"{n}\n".encode() for n in range(4)]

    @pytest.mark.parametrize("name", ["/", "/usr", "/var", "/etc/ssl", "/proc/self", "/run"])
    async def test_a_folder_of_the_system_is_refused(self, sandbox: Sandbox, name: str) -> None:
        with pytest.raises(SandboxError, match="folder"):
            await self.run(sandbox, Path(name), ["true"])

    async def test_a_folder_that_is_not_there_is_refused(self, sandbox: Sandbox, folder: Path) -> None:
        with pytest.raises(SandboxError, match="folder"):
            await self.run(sandbox, folder / "none", ["true"])
