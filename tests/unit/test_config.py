from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from callboard.runtime.config import Settings, WorkSettings
from callboard.runtime.config_block import leaves
from callboard.runtime.errors import ConfigError

SECTIONS = "nats, server, work, worker, log, trace, topology, actors, registry, agents"
BAD_FILES = [
    ("nats: [", ":1: not valid YAML: expected the node content, but found '<stream end>'"),
    ("- a\n- b", f": must be a mapping with any of the sections {SECTIONS}, is a list"),
    ("just words", f": must be a mapping with any of the sections {SECTIONS}, is a text"),
    ("log:\n  level: info\n  level: debug", ":3: not valid YAML: key 'level' is written twice"),
    ("? [a, b]\n: 1", ":1: not valid YAML: a key must be a plain word"),
    ("!!python/object:os.system {}", (":1: not valid YAML: could not determine a constructor for the tag "
     "'tag:yaml.org,2002:python/object:os.system'")),
    ("wurker:\n  concurrency: 2", ": wurker: unknown section; did you mean worker?"),
    ("zzz: 1", (": zzz: unknown section; sections are "
     "actors, agents, log, nats, registry, server, topology, trace, work, worker")),
    ("worker:\n  concurency: 2", ": worker.concurency: unknown key; did you mean worker.concurrency?"),
    ("work:\n  drain_grace_s: 2", ": work.drain_grace_s: unknown key; did you mean worker.drain_grace_s?"),
    ("log:\n  zzz: 2", ": log.zzz: unknown key; log has level, format, file"),
    ("work:\n  retry:\n    attemps: 2", ": work.retry.attemps: unknown key; did you mean work.retry.attempts?"),
    ("worker: 3", ": worker: must be a mapping of settings, is 3"),
    ("nats:\n  url: {a: 1}", ": nats.url: must be text, is {'a': 1}"),
    ("worker:\n  concurrency: many", ": worker.concurrency: must be a whole number, is 'many'"),
    ("worker:\n  concurrency: 1.5", ": worker.concurrency: must be a whole number, is 1.5"),
    ("worker:\n  concurrency: 0", ": worker.concurrency: must be at least 1, is 0"),
    ("worker:\n  processes: 1000", ": worker.processes: must be at most 512, is 1000"),
    ("worker:\n  pool: Big Pool", ": worker.pool: must match ^[a-z0-9_-]{1,64}$, is 'Big Pool'"),
    ("worker:\n  labels: gpu", ": worker.labels: must be written like gpu=yes,zone=a, is 'gpu'"),
    ("work:\n  holds_wait_s: .inf", ": work.holds_wait_s: must be a finite number, is inf"),
    ("work:\n  holds_wait_s: -1", ": work.holds_wait_s: must be above 0, is -1"),
    ("log:\n  level: loud", ": log.level: must be 'debug', 'info', 'warning' or 'error', is 'loud'"),
    ("topology:\n  replicas: 2", ": topology.replicas: must be 1, 3 or 5, is 2"),
    ("topology:\n  queue_max_bytes: big",
     ": topology.queue_max_bytes: must be a number of bytes, like 512MiB or 2GB, is 'big'"),
    ("server:\n  port: 70000", ": server.port: must be at most 65535, is 70000"),
    ("server:\n  port: 5000\n  http_port: 5000", ": server.http_port: must differ from port, both are 5000"),
    ("nats:\n  url: localhost:4222", ": nats.url: must look like nats://host:4222 (or tls://, ws://, wss://)"),
    ("nats:\n  url: nats://ann:hush@host:4222",
     ": nats.url: must not hold credentials; use user and password, or token"),
    ("nats:\n  user: ann", ": nats.password: must be set as well, because user is"),
    ("nats:\n  token: hush\n  creds_file: a.creds",
     ": nats.creds_file: cannot be used together with token; keep one way to log in"),
    ("nats:\n  tls_cert_file: a.pem", ": nats.tls_key_file: must be set as well: a client certificate needs its key"),
    ("nats:\n  url: ${NOT_SET}",
     ": nats.url: the variable NOT_SET is not set; set it, or write ${NOT_SET:-default}"),
    ("work:\n  extend_every_s: 2", (": work.extend_every_s: must be at most a third of ack_wait_s (1.33333), is 2: "
     "two extensions may be lost before the task is given to another worker")),
    ("work:\n  holds_wait_s: 4", (": work.holds_wait_s: must be below ack_wait_s (4), is 4: "
     "the claim would be lost while asking")),
    ("actors:\n  event_ttl_s: 300", (": actors.event_ttl_s: must be at least twice audit_settle_s (360), is 300: "
     "events would expire before their copy is on disk")),
    ("actors:\n  retention_s: 5", ": actors.retention_s: must be at least 60, is 5"),
    ("work:\n  retry: {base_s: 9, max_s: 5}", ": work.retry.max_s: must be at least base_s (9), is 5"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "callboard.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(**sources: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load(**{"env": {}, **sources})  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_refused_with_file_key_and_reason(text: str, message: str) -> None:
    path = write(text, "bad.yaml")
    assert refusal(file=path) == f"bad.yaml{message}"


def test_all_problems_are_named_at_once() -> None:
    write("worker: {concurrency: 0}\nlog: {levl: info}")
    assert refusal().splitlines() == [
        "callboard.yaml: worker.concurrency: must be at least 1, is 0",
        "callboard.yaml: log.levl: unknown key; did you mean log.level?",
    ]


def test_later_sources_win_and_are_named_as_origin() -> None:
    write("worker: {concurrency: 2, processes: 2, pool: two, health_port: 2}")
    write("worker: {concurrency: 3, processes: 3, pool: three}", "over.yaml")
    env = {"CALLBOARD_WORKER__CONCURRENCY": "4", "CALLBOARD_WORKER__PROCESSES": "4"}
    settings = Settings.load(
        file=["callboard.yaml", "over.yaml"], env=env, flags={"worker.concurrency": 5, "worker.pool": None}
    )
    worker = settings.worker
    assert (worker.concurrency, worker.processes, worker.pool, worker.health_port) == (5, 4, "three", 2)
    origins = settings.origins()
    assert origins["worker.concurrency"] == "flag"
    assert origins["worker.processes"] == "env CALLBOARD_WORKER__PROCESSES"
    assert origins["worker.pool"] == "over.yaml"
    assert origins["worker.health_port"] == "callboard.yaml"
    assert origins["worker.drain_grace_s"] == "default"


def test_the_file_is_optional_but_a_named_one_must_exist() -> None:
    assert Settings.load(env={}) == Settings()
    message = "other.yaml: there is no such file; name another one or run without it to use the defaults"
    assert refusal(file="other.yaml") == message
    assert refusal(env={"CALLBOARD_CONFIG": "other.yaml"}) == message


def test_several_files_can_be_named_by_a_variable() -> None:
    write("log: {level: debug}", "a.yaml")
    write("log: {format: json}", "b.yaml")
    log = Settings.load(env={"CALLBOARD_CONFIG": os.pathsep.join(["a.yaml", "b.yaml"])}).log
    assert (log.level, log.format) == ("debug", "json")


@pytest.mark.parametrize("text", ["", "nats:\n", "# nothing\n", "nats: {}\n"])
def test_empty_files_and_sections_mean_the_defaults(text: str) -> None:
    write(text)
    assert Settings.load(env={}).model_dump() == Settings().model_dump()


def test_variables_are_put_into_strings() -> None:
    write("nats:\n  url: nats://${HOST}:${PORT:-4333}\n  user: a$$b\n  password: ${PW}")
    nats = Settings.load(env={"HOST": "broker", "PW": "x"}).nats
    assert (nats.url, nats.user) == ("nats://broker:4333", "a$b")


def test_a_bad_variable_is_named() -> None:
    assert refusal(env={"CALLBOARD_WORKER__CONCURENCY": "2"}) == (
        "env CALLBOARD_WORKER__CONCURENCY: worker.concurency: unknown key; did you mean worker.concurrency?"
    )
    assert refusal(flags={"worker.concurrency": "x"}) == "flag: worker.concurrency: must be a whole number, is 'x'"
    assert refusal(flags={"worker": 1, "worker.pool": "x"}) == (
        "flag: worker.pool: worker is set to a plain value by flag"
    )


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert Settings.load(env={"CALLBOARD_PORT": "tcp://10.0.0.1:80", "CALLBOARD_SERVICE_HOST": "x"}) == Settings()


def test_the_server_binary_has_a_variable_of_its_own() -> None:
    settings = Settings.load(env={"CALLBOARD_NATS_SERVER": "/opt/nats-server"})
    assert settings.server.binary == Path("/opt/nats-server")
    assert settings.origins()["server.binary"] == "env CALLBOARD_NATS_SERVER"


def test_texts_from_variables_become_numbers_sizes_and_labels() -> None:
    settings = Settings.load(
        env={
            "CALLBOARD_WORK__RETRY__ATTEMPTS": "7",
            "CALLBOARD_TOPOLOGY__REPLICAS": "3",
            "CALLBOARD_TOPOLOGY__QUEUE_MAX_BYTES": "2GiB",
            "CALLBOARD_WORKER__LABELS": "gpu=yes, zone=a",
        }
    )
    assert settings.work.retry.attempts == 7
    assert settings.topology.replicas == 3
    assert settings.topology.queue_max_bytes == 2 << 30
    assert settings.worker.labels == {"gpu": "yes", "zone": "a"}


def test_labels_written_one_by_one_keep_their_origin() -> None:
    write("worker: {labels: {gpu: 'yes', zone: a}}")
    settings = Settings.load(env={})
    assert settings.worker.labels == {"gpu": "yes", "zone": "a"}
    assert settings.origins()["worker.labels"] == "callboard.yaml"


def test_a_secret_can_come_from_a_file() -> None:
    Path("pw").write_text("hush\n", encoding="utf-8")
    env = {"CALLBOARD_NATS__USER": "ann", "CALLBOARD_NATS__PASSWORD_FILE": "pw"}
    settings = Settings.load(env=env)
    assert settings.nats.password is not None
    assert settings.nats.password.get_secret_value() == "hush"
    assert settings.origins()["nats.password"] == "env CALLBOARD_NATS__PASSWORD_FILE"


def test_a_secret_comes_one_way_only_and_its_file_must_exist() -> None:
    env = {"CALLBOARD_NATS__TOKEN_FILE": "none"}
    assert refusal(env=env) == (
        "env CALLBOARD_NATS__TOKEN_FILE: the secret's file none cannot be read (No such file or directory)"
    )
    assert refusal(env=env | {"CALLBOARD_NATS__TOKEN": "x"}) == (
        "env CALLBOARD_NATS__TOKEN_FILE: nats.token is set by CALLBOARD_NATS__TOKEN as well; keep one of the two"
    )


def test_keys_that_end_in_file_are_paths_not_secrets() -> None:
    settings = Settings.load(env={"CALLBOARD_NATS__NKEY_SEED_FILE": "seed.nk"})
    assert settings.nats.nkey_seed_file == Path("seed.nk")


def test_secrets_never_show() -> None:
    settings = Settings.load(env={"CALLBOARD_NATS__USER": "ann", "CALLBOARD_NATS__PASSWORD": "hush"})
    shown = {line.key: line.value for line in settings.shown()}
    assert shown["nats.password"] == "********"
    assert shown["nats.token"] == "-"
    assert "hush" not in f"{settings!r} {settings} {settings.shown()} {settings.model_dump()}"


@pytest.mark.parametrize(
    "text",
    [
        "nats: {password: {hush: 1}}",
        "nats: {user: ann, password: [hush]}",
        "nats: {passwort: hush}",
        "nats: {password: hush}",
        "nats: {url: 'nats://ann:hush@host'}",
    ],
)
def test_errors_never_show_a_secret(text: str) -> None:
    write(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(env={})
    assert "hush" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_every_setting_is_shown_once_with_its_origin() -> None:
    lines = Settings().shown()
    assert [line.key for line in lines] == [key for key, _ in leaves(Settings)]
    assert {line.origin for line in lines} == {"default"}


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().work.ack_wait_s = 9


def test_sections_check_themselves_without_load() -> None:
    with pytest.raises(ValidationError, match="third of ack_wait_s"):
        WorkSettings(ack_wait_s=2)


def test_the_package_and_the_command_line_do_not_import_settings() -> None:
    code = "import sys, callboard, callboard.cli; sys.exit('pydantic' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
