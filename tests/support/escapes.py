"""Ways out of a sandbox, each a small program that says ESCAPED when it has got through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from callboard.agents.sandbox.base import Limits

Outcome = Literal["prevented", "contained", "NOT PREVENTED"]
UP_TO_THE_ENGINE = "up to the engine"
MIB = 1 << 20
LIMITS = Limits(
    time_s=20.0,
    cpu_s=20.0,
    memory_bytes=256 * MIB,
    output_bytes=64 << 10,
    file_bytes=MIB,
    processes=24,
    open_files=64,
)
SANDBOXES = ("subprocess", "bubblewrap", "docker")
PRELUDE = """
import ctypes, json, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
a = json.loads(sys.argv[1])
amount = a["amount"]
print("BEGAN", flush=True)
def escaped():
    print("ESCAPED", flush=True)
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""


class Escape(Struct, frozen=True, kw_only=True):
    """One way out.

    Attributes:
        code: Python; what it can use stands in PRELUDE and in ``Stage.facts``.
        wants: What each sandbox makes of it: p(revented), c(ontained), n(ot prevented) or
            e(ngine's matter), in the order of SANDBOXES.
        amount: How much is tried in a sandbox; 10 GB where that is the attempt.
        control: How much is tried without one: just beyond the limit, for the machine's sake.
        limits: Other limits than LIMITS.
        needs_root: Without a sandbox it works for root only.
        may_lack: What the machine may not have, so that it fails without a sandbox too.
    """

    name: str
    code: str
    wants: str
    amount: float = 0
    control: float = 0
    limits: Mapping[str, float] = {}
    needs_root: bool = False
    may_lack: str = ""

    def want(self, sandbox: str) -> str:
        """Return what a sandbox is meant to make of it."""
        words = {"p": "prevented", "c": "contained", "n": "NOT PREVENTED", "e": UP_TO_THE_ENGINE}
        return words[self.wants[SANDBOXES.index(sandbox)]]

    def is_as_wanted(self, sandbox: str, outcome: Outcome) -> bool:
        """Tell whether an outcome is what the table promises."""
        want = self.want(sandbox)
        return want in (outcome, UP_TO_THE_ENGINE) or (want, outcome) == ("contained", "prevented")


READ = "print(open(a['outside']).read()); escaped()"
WRITE = "open(a['outside'], 'a').write('x'); escaped()"
SYMLINK = "os.symlink(a['outside'], 'link'); open('link').read(); escaped()"
SYMLINK_WRITE = "os.symlink(a['outside'], 'other'); open('other', 'a').write('x'); escaped()"
HARD_LINK = "os.link(a['outside'], 'hard'); escaped()"
DOTS = "open('/'.join(['..'] * 30) + a['outside']).read(); escaped()"
STAT = "os.stat(a['outside']); escaped()"
CHMOD = "os.chmod(a['outside'], 0o640); escaped()"
ENVIRON = "assert a['canary'] in str(os.environ); escaped()"
OTHER_ENVIRON = "assert a['canary'].encode() in open(f\"/proc/{a['victim']}/environ\", 'rb').read(); escaped()"
OWN_ENVIRON = "assert a['canary'].encode() in open('/proc/self/environ', 'rb').read(); escaped()"
PROCESSES = "assert a['marker'].encode() in open(f\"/proc/{a['victim']}/cmdline\", 'rb').read(); escaped()"
CONNECT = "socket.create_connection(('127.0.0.1', a['port']), 5); escaped()"
UNIX = "s = socket.socket(socket.AF_UNIX); s.connect(a['unix']); escaped()"
ABSTRACT = "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + a['abstract']); escaped()"
VSOCK = "socket.socket(socket.AF_VSOCK); escaped()"
FORKS = """
found = []
try:
    for _ in range(int(amount)):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        found.append(pid)
    escaped()
finally:
    for pid in found:
        os.kill(pid, 9)
"""
ALLOCATE = """
kept = []
while sum(map(len, kept)) < amount:
    kept.append(bytearray(b"x" * (16 << 20)))
    if sum(map(len, kept)) > a["memory_bytes"]:
        escaped()
"""
ALLOCATE_TOGETHER = """
told, tell = os.pipe()
held, hold = os.pipe()
found = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os.close(told), os.close(hold)
        kept = bytearray(b"x" * (72 << 20))
        os.write(tell, b"x")
        os.read(held, 1)
        os._exit(0)
    found.append(pid)
os.close(tell)
got = b""
while len(got) < 5 and (more := os.read(told, 1)):
    got += more
if len(got) == 5:
    time.sleep(1)
    if all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in found):
        escaped()
"""
SEGMENTS = """
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
made = []
try:
    for _ in range(20):
        made.append(must(libc.shmget(0, 16 << 20, 0o1600)))
        at = libc.shmat(made[-1], None, 0)
        ctypes.memset(at, 1, 16 << 20)
        libc.shmdt(at)
    escaped()
finally:
    for each in made:
        libc.shmctl(each, 0, None)
"""
SHM = """
made = []
try:
    for n in range(int(amount)):
        made.append(f"/dev/shm/{a['marker']}-{n}")
        open(made[-1], "wb").write(b"x" * a["file_bytes"])
    escaped()
finally:
    for each in made:
        os.path.exists(each) and os.unlink(each)
"""
SPIN = """
while time.process_time() < amount:
    pass
escaped()
"""
SLEEP = "time.sleep(amount); escaped()"
FLOOD = """
left = amount
while left > 0:
    left -= os.write(1, b"x" * 65536)
"""
BIG_FILE = """
with open("big", "wb", buffering=0) as file:
    while (size := file.tell()) < amount:
        file.write(b"x" * 65536)
        if size > a["file_bytes"]:
            escaped()
            break
"""
MANY_FILES = """
for n in range(20):
    open(f"many-{n}", "wb").write(b"x" * (a["file_bytes"] // 2))
escaped()
"""
DESCRIPTORS = """
found = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(amount))]
escaped()
"""
DAEMON = """
started, start = os.pipe2(os.O_CLOEXEC)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(120)", a["daemon"]])
    os._exit(0)
os.close(start)
os.wait()
os.read(started, 1)  # ends when the daemon has become its program
"""
SETUID = "os.setuid(54321); escaped()"
SET_UID_PROGRAM = "assert libc.prctl(39, 0, 0, 0, 0) == 0; escaped()"
PTRACE = "must(libc.ptrace(0x4206, a['victim'], None, None)); escaped()"
KILL = "os.kill(a['victim'], 9); escaped()"
SIGNAL_WORKER = "os.kill(a['worker'], 0); escaped()"
MOUNT = "os.mkdir('m'); must(libc.mount(b'none', b'm', b'tmpfs', 0, None)); libc.umount(b'm'); escaped()"
DEVICE = "os.mknod('device', 0o20600, os.makedev(1, 3)); open('device').read(); escaped()"
NAMESPACE = "must(libc.unshare(0x10000000)); escaped()"
SYSCTL = """
path = "/proc/sys/vm/swappiness"
same = open(path).read()
open(path, "w").write(same)
escaped()
"""

ESCAPES = (
    Escape(name="read a file outside", code=READ, wants="ppp"),
    Escape(name="write a file outside", code=WRITE, wants="ppp"),
    Escape(name="read outside by ../..", code=DOTS, wants="ppp"),
    Escape(name="read through a symbolic link", code=SYMLINK, wants="ppp"),
    Escape(name="write through a symbolic link", code=SYMLINK_WRITE, wants="ppp"),
    Escape(name="hard link to a file outside", code=HARD_LINK, wants="ppp"),
    Escape(name="ask for size and age of a file outside", code=STAT, wants="npp"),
    Escape(name="change the mode of a file of the same user", code=CHMOD, wants="npp"),
    Escape(name="secrets in the environment", code=ENVIRON, wants="ppp"),
    Escape(name="secrets in /proc/self/environ", code=OWN_ENVIRON, wants="ppp"),
    Escape(name="secrets in another process's environ", code=OTHER_ENVIRON, wants="ppp"),
    Escape(name="arguments of other processes", code=PROCESSES, wants="ppp"),
    Escape(name="connect to this machine's network", code=CONNECT, wants="ppp"),
    Escape(name="connect to a socket file (docker.sock)", code=UNIX, wants="ppp"),
    Escape(name="connect to an abstract socket", code=ABSTRACT, wants="ppp"),
    Escape(name="open a vsock to the hypervisor", code=VSOCK, wants="ppe", may_lack="vsock"),
    Escape(name="fork bomb", code=FORKS, wants="ccp", amount=300, control=60),
    Escape(name="allocate 10 GB", code=ALLOCATE, wants="ppc", amount=1e10, control=300 * MIB),
    Escape(name="allocate by many processes", code=ALLOCATE_TOGETHER, wants="ccc"),
    Escape(name="allocate segments of no process", code=SEGMENTS, wants="ppc"),
    Escape(name="fill /dev/shm", code=SHM, wants="ppp", amount=400, control=3),
    Escape(name="spin", code=SPIN, wants="ccc", amount=15, control=1.5, limits={"cpu_s": 1.0}),
    Escape(name="run longer than allowed", code=SLEEP, wants="ccc", amount=60, control=1.2, limits={"time_s": 1.0}),
    Escape(name="flood the output", code=FLOOD, wants="ccc", amount=1e10, control=1e6, limits={"time_s": 2.0}),
    Escape(name="write a file of 10 GB", code=BIG_FILE, wants="ppp", amount=1e10, control=2 * MIB),
    Escape(name="fill the disk with small files", code=MANY_FILES, wants="nnn"),
    Escape(name="open many descriptors", code=DESCRIPTORS, wants="ppp", amount=5000, control=100),
    Escape(name="leave a daemon behind", code=DAEMON, wants="ccc"),
    Escape(name="become another user", code=SETUID, wants="ppp", needs_root=True),
    Escape(name="gain powers by a set-uid program", code=SET_UID_PROGRAM, wants="ppp"),
    Escape(name="trace another process", code=PTRACE, wants="ppp", needs_root=True),
    Escape(name="kill another process", code=KILL, wants="ppp"),
    Escape(name="send the worker a signal", code=SIGNAL_WORKER, wants="ppp"),
    Escape(name="mount", code=MOUNT, wants="ppp", needs_root=True),
    Escape(name="make a device", code=DEVICE, wants="ppp", needs_root=True),
    Escape(name="enter a new user namespace", code=NAMESPACE, wants="ppp", may_lack="user namespaces"),
    Escape(name="write a setting of the kernel", code=SYSCTL, wants="ppp", needs_root=True),
)


def table(outcomes: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the lines of a Markdown table; ``outcomes`` by name of the escape and of the sandbox."""
    head = ["| escape | " + " | ".join(SANDBOXES) + " |", "|---" * (len(SANDBOXES) + 1) + "|"]
    rows = [
        f"| {each.name} | " + " | ".join(outcomes.get((each.name, sandbox), "-") for sandbox in SANDBOXES) + " |"
        for each in ESCAPES
    ]
    return [*head, *rows]


def wanted() -> dict[tuple[str, str], str]:
    """Return the table as it should be."""
    return {(each.name, sandbox): each.want(sandbox) for each in ESCAPES for sandbox in SANDBOXES}
