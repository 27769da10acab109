"""The written configuration: complete, shut, the same when written again, and safe or refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from callboard.cli.main import cli
from callboard.cli.session import Session
from callboard.runtime.bus.pattern import matches
from callboard.runtime.config import Settings
from callboard.runtime.errors import (
    CallboardError,
    ConfigError,
    InvalidNameError,
    MissingExtraError,
    NotFoundError,
    ServerStartError,
)
from callboard.runtime.security import role
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.plan import MAIN, Tenant, layout, read, unit
from callboard.runtime.security.role import ROLES, User
from callboard.runtime.security.serverconf import problems
from tests.support.secured import modes, planned

ROOT = Path(__file__).parents[2]
SAFE = 'listen: "127.0.0.1:4222"\nhttp: "127.0.0.1:8222"\n'


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in modes(folder)}


def test_the_roles_in_the_docs_are_those_of_the_code() -> None:
    assert (ROOT / "docs/security.md").read_text("utf-8").endswith(f"\n{role.markdown()}\n"), (
        "write the end of docs/security.md anew: callboard nats roles --markdown"
    )


def test_writing_again_changes_nothing_and_rotating_changes_every_key(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    plan = planned(pools=["gpu=search"])
    folder.write(plan)
    first = contents(tmp_path)
    folder.write(plan)
    assert contents(tmp_path) == first
    folder.write(plan, rotate=True)
    changed = {name for name, data in contents(tmp_path).items() if data != first[name]}
    assert changed >= {name for name in first if name.startswith("tls/") or name.endswith(("seed", ".secret"))}
    assert "accounts.conf" in changed


@pytest.mark.parametrize("package", ["nkeys", "cryptography"])
def test_without_the_extra_it_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "callboard.runtime.security.certificate", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'callboard\[security\]'"):
        Folder(tmp_path / "nats").write(planned())
    assert not (tmp_path / "nats").exists()


def test_what_is_secret_only_its_owner_may_read(tmp_path: Path) -> None:
    Folder(tmp_path).write(planned(servers=3))
    found = modes(tmp_path)
    secret = {name for name in found if name.endswith(("seed", ".key", ".secret", "nats.conf"))}
    assert len(secret) > 10
    assert {found[name] for name in secret} == {0o600}


def test_no_seed_stands_in_what_the_servers_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(planned())
    seeds = [path.read_text("utf-8").strip() for path in tmp_path.rglob("seed")]
    assert len(seeds) == 7
    text = (tmp_path / "accounts.conf").read_text("utf-8") + folder.config_file("cb-1").read_text("utf-8")
    assert not [seed for seed in seeds if seed in text]


def test_the_settings_of_a_user_load_from_its_file_and_from_its_environment(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(planned(servers=3, pools=["gpu=search"]))
    file = folder.settings_file(MAIN, "worker-gpu")
    env = dict(line.split("=", 1) for line in file.with_name("env").read_text("utf-8").splitlines())
    settings = Settings.load(file=file, env={})
    assert settings.model_dump() == Settings.load(file=[], env=env).model_dump()
    assert settings.worker.user == "worker-gpu"
    assert settings.nats.inbox_prefix == "_INBOX.worker-gpu"
    assert settings.topology.replicas == 3


@pytest.mark.parametrize("name", ["a.b", "*", ">", "A", "", "x y", "x\n}", 'x"', "a" * 65])
def test_no_name_widens_what_the_table_grants(name: str) -> None:
    for user in (
        User(name=name, role="submitter"),
        User(name="x", role="host", types=(name,)),
        User(name="x", role="worker", capabilities=(name,)),
    ):
        if name == "*" and user.name == "x":
            continue
        with pytest.raises(InvalidNameError):
            role.permissions(user)
    with pytest.raises(InvalidNameError):
        planned().with_tenant(Tenant(name=name))


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidNameError, match="there are submitter, worker"):
        role.check(User(name="x", role="root"))


@pytest.mark.parametrize("name", [name for name in ROLES if name != "operator"])
def test_only_the_operator_may_change_streams(name: str) -> None:
    allowed = role.permissions(User(name="x", role=name, capabilities=("*",), types=("*",))).publish
    for verb in ("CREATE", "UPDATE", "DELETE", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE"):
        assert not [each for each in allowed if matches(each, f"$JS.API.STREAM.{verb}.CB_WORK")]
    assert not [each for each in allowed if each in {">", "cb.>", "$JS.>", "$JS.API.>", "$SYS.>"}]


def test_what_a_server_refuses_leaves_the_users_as_they_were(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    plan = planned(has_tls=False)
    folder.write(plan)
    before = (tmp_path / "accounts.conf").read_bytes()
    broken = replace(plan.with_tenant(Tenant(name="acme")), servers=(replace(plan.servers[0], name="cb 1"),))
    with pytest.raises(ServerStartError, match="nats-server refuses"):
        folder.write(broken)
    assert (tmp_path / "accounts.conf").read_bytes() == before
    assert read(tmp_path) == plan


def test_a_damaged_seed_is_not_printed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(planned(has_tls=False))
    seed = tmp_path / "users" / MAIN / "operator" / "seed"
    damaged = seed.read_text("utf-8").strip()[:-2] + "AA"
    seed.write_text(damaged, "utf-8")
    with pytest.raises(ConfigError) as caught:
        folder.write(folder.plan())
    assert damaged not in str(caught.value)
    assert caught.value.__cause__ is None


def test_beyond_loopback_nothing_goes_without_tls(tmp_path: Path) -> None:
    servers = layout(1, hosts=("nats.example",), port=4222, cluster_port=6222, http_port=8222)
    plan = replace(planned(has_tls=False), servers=servers)
    with pytest.raises(ConfigError, match="add --tls"):
        Folder(tmp_path).write(plan)
    Folder(tmp_path).write(replace(plan, has_tls=True))
    text = Folder(tmp_path).config_file("cb-1").read_text("utf-8")
    assert 'listen: "0.0.0.0:4222"' in text
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SAFE.replace("127.0.0.1:8222", "0.0.0.0:8222"), "monitoring on 0.0.0.0"),
        ("listen: 127.0.0.1:4222\nhttp_port: 8222\n", "monitoring on every address"),
        ("listen: 127.0.0.1:4222\nhttp: 8222\n", "monitoring on every address"),
        ("listen: 127.0.0.1:4222\nmonitor_port = 8222\n", "monitoring on every address"),
        ('listen: 127.0.0.1:4222\nhttps: "10.0.0.1:8222"\n', "monitoring on 10.0.0.1"),
        (SAFE + "no_auth_user: guest\n", "no_auth_user"),
        ('listen: "0.0.0.0:4222"\n', "in the clear"),
        ("port: 4222\n", "in the clear"),
    ],
)
def test_an_unsafe_configuration_is_named(text: str, words: str, tmp_path: Path) -> None:
    assert any(words in each for each in problems(text)), problems(text)
    file = tmp_path / "nats.conf"
    file.write_text(text, "utf-8")
    result = CliRunner().invoke(cli, ["nats", "check", str(file)], obj=Session())
    assert result.exit_code == 1
    assert words in result.output


def test_safe_ones_pass(tmp_path: Path) -> None:
    assert problems(SAFE) == []
    folder = Folder(tmp_path)
    folder.write(planned(servers=3))
    assert [problems(folder.config_file(f"cb-{n}").read_text("utf-8")) for n in (1, 2, 3)] == [[], [], []]


def test_the_command_keeps_what_is_not_given(tmp_path: Path) -> None:
    out = str(tmp_path / "nats")

    def run(*args: str) -> None:
        result = CliRunner().invoke(cli, ["nats", "config", "--out", out, *args], obj=Session(), catch_exceptions=False)
        assert result.exit_code == 0, result.output

    run("--cluster", "3", "--tls", "--port", "14222", "--pool", "gpu=search,embed", "--host", "desk=greeter/search")
    run("--max-file-bytes", "4GiB")
    plan = Folder(Path(out)).plan()
    assert [server.port for server in plan.servers] == [14222, 14223, 14224]
    assert plan.has_tls
    assert plan.max_file_bytes == 4 << 30
    assert plan.pools == (User(name="worker-gpu", role="worker", capabilities=("search", "embed")),)
    assert plan.hosts == (User(name="host-desk", role="host", types=("greeter",), capabilities=("search",)),)


def test_units_without_a_list_serve_everything() -> None:
    assert unit("gpu", role="worker").capabilities == ("*",)
    assert (unit("desk", role="host").types, unit("desk", role="host").capabilities) == (("*",), ("*",))
    assert unit("desk=greeter", role="host").capabilities == ()


def test_plans_refuse_what_cannot_be(tmp_path: Path) -> None:
    plan = planned(has_tls=False)
    wrong: list[tuple[Tenant, str]] = [
        (Tenant(name=MAIN), "another name"),
        (Tenant(name="acme", max_streams=0), "max_streams"),
        (Tenant(name="acme", max_bytes=plan.max_file_bytes + 1), "lower --max-bytes"),
    ]
    for tenant, words in wrong:
        with pytest.raises(ConfigError, match=words):
            plan.with_tenant(tenant)
    with pytest.raises(NotFoundError, match="there are: none"):
        plan.without_tenant("acme")
    with pytest.raises(ConfigError, match="one --address for all"):
        layout(3, hosts=("a", "b"), port=1, cluster_port=2, http_port=3)
    with pytest.raises(ConfigError, match="callboard nats config --out"):
        Folder(tmp_path / "none").plan()


def test_a_folder_without_its_authority_says_how_to_mend_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(planned())
    (tmp_path / "tls/ca.key").write_text("damaged", "utf-8")
    with pytest.raises(CallboardError, match="--rotate makes a new one"):
        folder.write(folder.plan())
    shutil.rmtree(tmp_path / "tls")
    folder.write(folder.plan())
    assert (tmp_path / "tls/ca.pem").exists()
