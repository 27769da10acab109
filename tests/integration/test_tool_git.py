"""Git tools run git and nothing else, whatever the repository, the paths and the revisions say."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

import pytest

from callboard.agents.errors import PathDeniedError, ToolArgumentError, ToolError
from callboard.agents.tools.builtin import git
from callboard.agents.tools.context import ToolContext


def run(folder: Path, *args: str) -> str:
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", *names, *args], cwd=folder, env=env, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    run(folder, "init", "-q", "-b", "main")
    (folder / "a.txt").write_text("one\n")
    run(folder, "add", ".")
    run(folder, "commit", "-qm", "First")
    return folder


def context(folder: Path, key: str = "k") -> ToolContext:
    return ToolContext(key=key, address="agent/a", folder=folder)


async def everything(here: ToolContext) -> list[str]:
    """Call every tool, and return what they said."""
    calls = [
        git.git_status(here),
        git.git_log(here),
        git.git_log(here, path="a.txt"),
        git.git_diff(here),
        git.git_show("HEAD", here),
        git.git_show("HEAD:a.txt", here),
        git.git_commit("Second", ["a.txt"], here),
    ]
    found = []
    for call in calls:
        try:
            found.append(await call)
        except ToolError as error:
            found.append(f"{error.code}: {error}")
    return found


async def test_a_repository_is_read_and_committed_to(repo: Path) -> None:
    (repo / "a.txt").write_text("two\n")
    said = await everything(context(repo))
    assert said[0] == "## main\n M a.txt\n"
    assert "Callboard" not in said[1]
    assert "First" in said[1]
    assert "First" in said[2]
    assert "-one\n+two" in said[3]
    assert "+one" in said[4]
    assert said[5] == "one\n"
    assert said[6].endswith("Second\n")
    assert run(repo, "log", "--format=%s").split() == ["Second", "First"]


async def test_a_commit_that_is_run_again_is_the_same(repo: Path) -> None:
    (repo / "a.txt").write_text("two\n")
    first = await git.git_commit("Second", ["a.txt"], context(repo, "one"))
    assert await git.git_commit("Second", ["a.txt"], context(repo, "one")) == first
    (repo / "a.txt").write_text("three\n")
    assert await git.git_commit("Second", ["a.txt"], context(repo, "two")) != first
    assert len(run(repo, "log", "--format=%s").split()) == 3


SETTINGS = {
    "core.fsmonitor": "{bad}",
    "core.sshCommand": "{bad}",
    "core.pager": "{bad}",
    "core.editor": "{bad}",
    "core.worktree": "/",
    "core.alternateRefsCommand": "{bad}",
    "filter.x.clean": "{bad}",
    "filter.x.process": "{bad}",
    "diff.external": "{bad}",
    "diff.x.textconv": "{bad}",
    "diff.x.command": "{bad}",
    "merge.x.driver": "{bad}",
    "gpg.program": "{bad}",
    "credential.helper": "!{bad}",
    "include.path": "../bad.config",
    "includeIf.gitdir:/.path": "../bad.config",
    "alias.status": "!{bad}",
    "pager.log": "{bad}",
    "trailer.x.command": "{bad}",
    "uploadpack.packObjectsHook": "{bad}",
    "remote.origin.uploadpack": "{bad}",
    "remote.origin.vcs": "ext",
    "protocol.ext.allow": "always",
    "submodule.x.update": "!{bad}",
    "url.ext::sh.insteadOf": "https:",
    "extensions.worktreeConfig": "true",
    "extensions.partialClone": "origin",
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
async def test_a_setting_that_could_run_a_program_is_refused(repo: Path, name: str) -> None:
    bad = _bad(repo)
    (repo / ".gitattributes").write_text("* filter=x diff=x merge=x\n")
    (repo / "a.txt").write_text("two\n")
    run(repo, "config", name, SETTINGS[name].format(bad=bad))
    said = await everything(context(repo))
    assert all("which may run a program" in text or "cannot be read" in text for text in said), said
    assert not _ran(repo)


async def test_the_bad_program_would_have_run(repo: Path) -> None:
    """The control: plain git runs what the configuration and the hooks name."""
    bad = _bad(repo)
    run(repo, "config", "core.fsmonitor", str(bad))
    run(repo, "status")
    assert _ran(repo)


async def test_hooks_and_attributes_run_nothing(repo: Path) -> None:
    bad = _bad(repo)
    for hook in (
        "pre-commit",
        "commit-msg",
        "prepare-commit-msg",
        "post-commit",
        "post-index-change",
        "reference-transaction",
    ):
        path = repo / ".git" / "hooks" / hook
        path.write_text(bad.read_text())
        path.chmod(0o755)
    (repo / ".gitattributes").write_text("* filter=x diff=x merge=x\n")
    (repo / "a.txt").write_text("two\n")
    said = await everything(context(repo))
    assert said[-1].endswith("Second\n")
    assert not _ran(repo)


async def test_a_repository_inside_runs_nothing(repo: Path) -> None:
    bad = _bad(repo)
    inner = repo / "inner"
    inner.mkdir()
    run(inner, "init", "-q")
    (inner / "b.txt").write_text("one\n")
    run(inner, "add", ".")
    run(inner, "commit", "-qm", "Inner")
    run(repo, "add", "inner")
    run(repo, "commit", "-qm", "With inner")
    (inner / ".gitattributes").write_text("* filter=x\n")
    (inner / "b.txt").write_text("two\n")
    run(inner, "config", "filter.x.clean", str(bad))
    run(inner, "config", "core.fsmonitor", str(bad))
    (repo / "a.txt").write_text("two\n")
    here = context(repo)
    assert all("failed" not in text for text in await everything(here))
    for paths in (["inner"], ["."], ["a.txt", "inner"]):
        with pytest.raises(ToolError, match="repository of its own"):
            await git.git_commit("Inner too", paths, context(repo, f"{paths}"))
    with pytest.raises(ToolError, match="nothing to commit"):
        await git.git_commit("Again", ["a.txt"], context(repo, "again"))
    run(inner, "commit", "-qam", "Moved")
    assert _ran(repo)
    (repo.parent / "ran").unlink()
    (repo / "a.txt").write_text("three\n")
    assert (await git.git_commit("Third", ["a.txt"], context(repo, "third"))).endswith("Third\n")
    assert not _ran(repo)


@pytest.mark.parametrize("place", ["commondir", "objects/info/alternates"])
async def test_a_repository_that_leads_elsewhere_is_refused(repo: Path, place: str) -> None:
    (repo / ".git" / place).write_text("/tmp\n")
    with pytest.raises(ToolError, match="another place"):
        await git.git_status(context(repo))


async def test_a_git_file_or_link_is_refused(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / ".git").write_text(f"gitdir: {repo / '.git'}\n")
    with pytest.raises(ToolError, match="of its own"):
        await git.git_status(context(other))
    (other / ".git").unlink()
    (other / ".git").symlink_to(repo / ".git")
    with pytest.raises(ToolError, match="of its own"):
        await git.git_status(context(other))
    (other / ".git").unlink()
    with pytest.raises(ToolError, match="of its own"):
        await git.git_status(context(other))


@pytest.mark.parametrize(
    "revision",
    [
        "--output=/tmp/x",
        "-O/tmp/x",
        "--upload-pack=sh",
        "$(id)",
        "`id`",
        "; id",
        "a b",
        "HEAD\0",
        "HEAD\n",
        "",
        ":/x",
        "--",
    ],
)
async def test_a_revision_is_no_option(repo: Path, revision: str) -> None:
    here = context(repo)
    for call in (git.git_show(revision, here), git.git_diff(here, revision), git.git_log(here, revision=revision)):
        with pytest.raises(ToolArgumentError):
            await call


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\0b", "~/x"])
async def test_a_path_stays_inside(repo: Path, path: str) -> None:
    here = context(repo)
    for call in (git.git_log(here, path), git.git_diff(here, path=path), git.git_commit("x", [path], here)):
        with pytest.raises(PathDeniedError):
            await call


async def test_a_path_that_looks_like_an_option_or_a_pattern_is_a_path(repo: Path) -> None:
    (repo / "--all").write_text("x")
    (repo / ":(glob)*").write_text("x")
    assert (await git.git_commit("Odd", ["--all", ":(glob)*"], context(repo))).endswith("Odd\n")
    assert run(repo, "show", "--name-only", "--format=").split() == ["--all", ":(glob)*"]


async def test_a_message_is_no_option(repo: Path) -> None:
    (repo / "a.txt").write_text("two\n")
    await git.git_commit("--amend", ["a.txt"], context(repo))
    assert run(repo, "log", "--format=%s").split() == ["--amend", "First"]


async def test_long_output_is_cut(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo / "a.txt").write_text("x" * 79 + "\n" + "y\n" * 50_000)
    monkeypatch.setattr(git, "MAX_OUTPUT_BYTES", 10_000)
    assert "[cut" in await git.git_diff(context(repo))


def _bad(repo: Path) -> Path:
    bad = repo.parent / "bad.sh"
    bad.write_text(f"#!/bin/sh\ntouch {repo.parent}/ran\ncat\n")
    bad.chmod(0o755)
    (repo.parent / "bad.config").write_text(f"[core]\nfsmonitor = {bad}\n")
    return bad


def _ran(repo: Path) -> bool:
    return (repo.parent / "ran").exists()


async def test_a_setting_that_comes_between_look_and_use_runs_nothing(repo: Path) -> None:
    good = (repo / ".git/config").read_text()
    bad = repo.parent / "between"
    (repo / ".gitattributes").write_text("* filter=x\n")
    wicked = f'{good}[filter "x"]\n\tclean = "touch {bad}; cat"\n'
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for text in (good, wicked):
                (repo / ".git/next").write_text(text)
                (repo / ".git/next").replace(repo / ".git/config")
                ended.wait(0.002)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = 0
    try:
        for number in range(8):
            (repo / "a.txt").write_text(f"{number}\n")
            with contextlib.suppress(ToolError):
                seen += "a.txt" in await git.git_diff(context(repo))
    finally:
        ended.set()
        swapping.join()
    assert not bad.exists()
    # the wicked setting would have run it
    (repo / ".git/config").write_text(wicked)
    _ = run(repo, "diff")
    assert bad.exists()


async def test_links_in_the_place_of_git_s_files_are_not_followed(repo: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    for name in ("index", "HEAD", "config", "packed-refs"):
        own = repo / ".git" / name
        kept = own.read_bytes() if own.exists() else None
        own.unlink(missing_ok=True)
        own.symlink_to(precious)
        with pytest.raises(ToolError, match="is a link"):
            await git.git_commit("x", ["a.txt"], context(repo, name))
        own.unlink()
        if kept is not None:
            own.write_bytes(kept)
    # a reflog would be written on, with the commit's subject in it
    (repo / ".git/logs/HEAD").unlink()
    (repo / ".git/logs/HEAD").symlink_to(precious)
    (repo / "a.txt").write_text("two\n")
    assert "$(bad)" in await git.git_commit("$(bad)", ["a.txt"], context(repo, "log"))
    assert precious.read_text() == "mine\n"
    assert not (repo / ".git/index.lock").exists()


async def test_a_commit_without_a_branch_and_one_beside_another_git(repo: Path) -> None:
    run(repo, "checkout", "-q", "--detach")
    (repo / "a.txt").write_text("two\n")
    assert "Detached" in await git.git_commit("Detached", ["a.txt"], context(repo, "one"))
    assert run(repo, "log", "-1", "--format=%s").strip() == "Detached"
    assert run(repo, "status", "--short") == ""
    (repo / ".git/index.lock").touch()
    (repo / "a.txt").write_text("three\n")
    with pytest.raises(ToolError, match="another git"):
        await git.git_commit("Third", ["a.txt"], context(repo, "two"))
    assert (repo / ".git/index.lock").exists()
