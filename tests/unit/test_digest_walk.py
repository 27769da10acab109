"""Which files are read, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from callboard.agents.digest.walk import walk


def _fill(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"about {path}\n", encoding="utf-8")


def test_build_products_and_hidden_files_are_left_out_with_a_reason(tmp_path: Path) -> None:
    _fill(
        tmp_path, "b.md", "src/a.py", ".git-credentials", "node_modules/x.js", "src/__pycache__/a.pyc", ".venv/lib.py"
    )
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["b.md", "src/a.py"]
    assert {item.path for item in found.left_out} == {".git-credentials", ".venv", "node_modules", "src/__pycache__"}
    assert all(item.reason for item in found.left_out)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.txt"
    _fill(inside, "a.txt", "deep/b.txt")
    outside.write_text("secret", encoding="utf-8")
    (inside / "leak.txt").symlink_to(outside)
    (inside / "up").symlink_to(tmp_path)
    (inside / "same.txt").symlink_to(inside / "a.txt")
    (inside / "broken.txt").symlink_to(inside / "gone")
    found = walk(inside)
    assert [file.path for file in found.files] == ["a.txt", "deep/b.txt", "same.txt"]
    assert {item.path: item.reason for item in found.left_out}["leak.txt"] == "a link out of the folder"


def test_limits_are_kept_and_reported(tmp_path: Path) -> None:
    _fill(tmp_path, "a.txt", "b.txt", "c.txt")
    (tmp_path / "big.txt").write_bytes(b"x" * 2_000)
    found = walk(tmp_path, max_files=2, max_bytes=1_000)
    assert [file.path for file in found.files] == ["a.txt", "b.txt"]
    assert {item.path for item in found.left_out} == {"c.txt", "big.txt"}


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert [item.reason for item in walk(tmp_path).left_out] == ["not a regular file"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_git_checkout_is_read_as_git_sees_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    _fill(tmp_path, "kept.md", "secret.log", "build/new.txt", "ünï côdé.md")
    (tmp_path / ".gitignore").write_text("*.log\n", encoding="utf-8")
    found = walk(tmp_path)
    assert found.used_git
    assert [file.path for file in found.files] == [".gitignore", "build/new.txt", "kept.md", "ünï côdé.md"]


def test_something_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="no folder"):
        walk(tmp_path / "missing")


def test_what_the_demo_writes_is_not_read(tmp_path: Path) -> None:
    _fill(tmp_path, "a.txt", "out/report.html", "outer/b.txt")
    found = walk(tmp_path, skip=(tmp_path / "out", tmp_path.parent / "elsewhere"))
    assert [file.path for file in found.files] == ["a.txt", "outer/b.txt"]
    assert found.left_out_total == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, "a.txt", "locked.txt")
    (tmp_path / "locked.txt").chmod(0)
    found = walk(tmp_path)
    assert [file.path for file in found.files] == ["a.txt"]
    assert found.left_out[0].reason == "cannot be read: Permission denied"
