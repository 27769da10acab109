"""Logs never show a secret, whatever shape it comes in; what cannot be cleaned is withheld."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Iterator
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.runtime import events, logs
from callboard.runtime.errors import ConfigError
from callboard.runtime.redact import MAX_TEXT_CHARS, REDACTED, is_secret_key, redact, redact_text

CANARY = "Hunter2Canary"
SEED = "SU" + "A2B3C4D5E6F7" * 5
SEED = SEED[:58]
JWT = f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.{CANARY}"
SECRET_KEYS = [
    "password", "db_password", "PASSWORD", "token", "accessToken", "secret", "client-secret", "Authorization",
    "api_key", "apiKey", "API-KEY", "nkey", "seed", "nkey_seed", "creds", "credentials", "cookie", "Set-Cookie", "jwt",
    "private key", "passphrase", "X-Session-Id",
]  # fmt: skip
SECRET_TEXTS = [
    f"nats://worker:{CANARY}@host:4222",
    f"postgres://a:{CANARY}@h/db?x=1, nats://b:{CANARY}@h2",
    f"nats://u:p@{CANARY}@host",
    f"nats://{CANARY}@host:4222",
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}-{CANARY}",
    f"Authorization: Bearer {CANARY}",
    f"bearer   {CANARY}",
    f"Authorization: Basic {CANARY}==",
    f"authorization: Digest username=x, response={CANARY}",
    f"Cookie: a=b; sid={CANARY}",
    JWT,
    f"-----BEGIN USER NKEY SEED-----\n{CANARY}\n------END USER NKEY SEED------",
    f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}",
    f"password={CANARY}",
    f"password = '{CANARY} with words {CANARY}'",
    f'{{"api_key": "{CANARY}\\"{CANARY}"}}',
    f"/path?token={CANARY}&x=1",
    f"Creds(nkey_seed='{CANARY}')",
    f"ghp_{CANARY}1234",
]


@dataclasses.dataclass
class Login:
    user: str
    password: str


class Wire(msgspec.Struct):
    api_key: str
    note: str


class Chatty:
    def __repr__(self) -> str:
        return CANARY

    __str__ = __repr__


class Explosive(dict[str, object]):
    def items(self) -> NoReturn:
        raise RuntimeError(CANARY)


class LoudInt(int):
    def __repr__(self) -> str:
        return CANARY


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """Logs as JSON into a buffer; the root logger is put back afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    before = list(root.handlers), root.level
    logs.configure(form="json", level="debug", stream=stream)
    yield stream
    for handler in [h for h in root.handlers if h not in before[0]]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(before[1])


def _leaks(value: object) -> bool:
    return CANARY in json.dumps(value, default=repr)


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_value_under_a_secret_key_is_gone(key: str) -> None:
    assert redact({key: CANARY}) == {key: REDACTED}
    assert not _leaks(redact({"a": [{"b": ({key: {"deep": [CANARY]}},)}]}))
    assert not _leaks(redact({"headers": [(key, CANARY), (key.encode(), CANARY.encode())]}))


@pytest.mark.parametrize("key", ["task", "capability", "worker", "took_s", "attempt", "subject", "stream", "consumer"])
def test_an_ordinary_key_keeps_its_value(key: str) -> None:
    assert not is_secret_key(key)
    assert redact({key: "search/7"}) == {key: "search/7"}


def test_counts_of_model_tokens_are_kept_and_texts_under_the_same_name_are_not() -> None:
    assert redact({"tokens_in": 12, "max_tokens": 3.0}) == {"tokens_in": 12, "max_tokens": 3.0}
    assert redact({"tokens": CANARY}) == {"tokens": REDACTED}


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_a_text_that_looks_like_a_secret_is_scrubbed(text: str) -> None:
    assert CANARY not in redact_text(text)
    assert not _leaks(redact({"note": ["x", {"y": f"before {text} after"}], text: 1}))
    assert not _leaks(redact({"error": RuntimeError(text)}))


def test_an_nkey_seed_is_scrubbed() -> None:
    assert redact_text(f"using {SEED}, ok") == f"using {REDACTED}, ok"


@pytest.mark.parametrize(
    "text", ["", "task search/7 took 3 s", "nats://host:4222", "cb.task.search", "2026-11-21T09:30:00Z", "basic usage"]
)
def test_an_ordinary_text_is_kept(text: str) -> None:
    assert redact_text(text) == text


def test_structs_and_dataclasses_are_opened_and_unknown_objects_stay_shut() -> None:
    found = redact({"l": Login("ann", CANARY), "w": Wire(CANARY, "hi"), "c": Chatty(), "k": {Chatty(): 1}})
    assert found["l"] == {"user": "ann", "password": REDACTED}
    assert found["w"] == {"api_key": REDACTED, "note": "hi"}
    assert found["c"] == "<Chatty>"
    assert not _leaks(found)
    assert not _leaks(redact({"n": LoudInt(3), "b": CANARY.encode()}))


def test_a_cycle_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "too deep" in json.dumps(redact({"loop": loop}))


def test_a_hostile_text_takes_no_time() -> None:
    for part in ("://", "eyJ", "token", "token='", 'token="\\', "sk-", "Bearer ", "-----BEGIN KEY-----", "a"):
        redact_text((part * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS])
    assert redact_text("x" * (MAX_TEXT_CHARS + 1)) == f"[{MAX_TEXT_CHARS + 1} characters]"


_SECRETS = st.sampled_from(SECRET_TEXTS)
_HARMLESS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
_FREE = st.recursive(
    _HARMLESS
    | _SECRETS
    | st.tuples(st.text(max_size=9), _SECRETS, st.text(alphabet=" \n;,)", max_size=3)).map("".join),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | _SECRETS, inner, max_size=4)
        | st.builds(Wire, api_key=st.just(CANARY), note=_SECRETS)
        | st.sampled_from(SECRET_KEYS).flatmap(lambda key: st.fixed_dictionaries({key: st.just(CANARY) | inner}))
        | st.tuples(st.sampled_from(SECRET_KEYS), st.just(CANARY))
    ),
    max_leaves=12,
)


@pytest.mark.property
@settings(max_examples=500)
@given(st.dictionaries(st.text(max_size=8), _FREE, max_size=5))
def test_no_shape_of_event_leaks(event: dict[str, object]) -> None:
    assert not _leaks(redact(event))


def test_the_fuzz_would_see_a_leak() -> None:
    """Negative control: the same check fails without redaction."""
    assert _leaks({"note": SECRET_TEXTS[0]})


def test_a_logged_event_is_one_clean_line_of_json(output: io.StringIO) -> None:
    log = logs.get_logger("callboard.test").bind(worker="w1")
    with logs.bound_ids(task="search/7"):
        log.info(events.TASK_SKIPPED, took_s=0.5, url=SECRET_TEXTS[0])
    line = json.loads(output.getvalue())
    assert line["event"] == events.TASK_SKIPPED
    assert (line["worker"], line["task"], line["took_s"], line["level"]) == ("w1", "search/7", 0.5, "info")
    assert line["url"] == f"nats://{REDACTED}@host:4222"


def test_what_other_libraries_log_is_redacted_too(output: io.StringIO) -> None:
    logging.getLogger("elsewhere").warning("connecting to %s", SECRET_TEXTS[0])
    assert "connecting to nats://" in output.getvalue()
    assert CANARY not in output.getvalue()


def test_a_traceback_is_scrubbed(output: io.StringIO) -> None:
    try:
        int(SECRET_TEXTS[0])
    except ValueError as error:
        logs.get_logger("callboard.test").error(events.WORKER_FAILED, exc_info=error)
    assert "Traceback" in output.getvalue()
    assert CANARY not in output.getvalue()


def test_when_redaction_fails_only_the_name_of_the_event_is_printed(output: io.StringIO) -> None:
    logs.get_logger("callboard.test").info(events.TASK_UNCOMMITTED, task=CANARY, payload=Explosive())
    line = json.loads(output.getvalue())
    assert line.pop("timestamp")
    assert line == {
        "level": "info",
        "logger": "callboard.test",
        "event": events.TASK_UNCOMMITTED,
        "withheld": events.LOG_WITHHELD,
    }


@pytest.mark.usefixtures("output")
def test_a_broken_call_of_another_library_prints_nothing_of_its_arguments() -> None:
    record = logging.LogRecord("elsewhere", logging.WARNING, __file__, 1, "%d %d", (CANARY,), None)
    # Our handler alone: pytest's own would raise. Ours carries the formatter of our module.
    ours = [h for h in logging.getLogger().handlers if type(h.formatter).__module__ == logs.__name__]
    line = ours[0].format(record)
    assert json.loads(line)["event"] == events.LOG_WITHHELD
    assert CANARY not in line


def test_a_stream_that_fails_prints_nothing_of_the_event(
    output: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    output.close()
    logging.getLogger("elsewhere").warning("%s", CANARY)
    assert "could not write" in (printed := capsys.readouterr().err)
    assert CANARY not in printed


@pytest.mark.usefixtures("output")
def test_levels_hold_per_logger_and_change_while_running() -> None:
    stream = io.StringIO()
    logs.configure(form="json", level="warning", levels={"callboard.a": "debug"}, stream=stream)
    loud, quiet = logs.get_logger("callboard.a.b"), logs.get_logger("callboard.b")
    assert loud.is_enabled("debug")
    quiet.info(events.WORKER_READIED)
    loud.debug(events.TASK_RETRIED)
    logs.set_level("error", name="callboard.a")
    loud.warning(events.TASK_UNCOMMITTED)
    logging.getLogger("callboard.a").setLevel(logging.NOTSET)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [events.TASK_RETRIED]
    with pytest.raises(ConfigError, match="verbose"):
        logs.configure(level="verbose")


@pytest.mark.usefixtures("output")
def test_the_file_gets_json_and_is_kept_thirty_days(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.configure(form="console", stream=stream, file=tmp_path / "log" / "worker.jsonl")
    logs.get_logger("callboard.test").info(events.WORKER_READIED, worker="w1")
    handler = next(h for h in logging.getLogger().handlers if isinstance(h, TimedRotatingFileHandler))
    assert handler.backupCount == 30
    assert json.loads((tmp_path / "log" / "worker.jsonl").read_text())["worker"] == "w1"
    assert "worker=w1" in stream.getvalue()
