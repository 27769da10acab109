"""The image's file keeps its rules on machines that cannot build it; tests/root/test_image.py builds and runs it."""

from __future__ import annotations

import fnmatch
import json
import re
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from callboard.runtime.config import Settings
from tests.unit.test_layout import HOSTS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "image" / "Dockerfile").read_text("utf-8")
IGNORE = (ROOT / ".dockerignore").read_text("utf-8")
HEALTH = ROOT / "deploy" / "image" / "health.py"


def _instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def _is_sent(path: str, ignore: str) -> bool:
    """Return whether a builder is given a file, by the rules of .dockerignore that we use."""
    sent = True
    for line in ignore.splitlines():
        pattern = line.removeprefix("!")
        if pattern and not line.startswith("#"):
            below = [path, *(str(each) for each in Path(path).parents)]
            name = pattern.removeprefix("**/")
            if any(
                fnmatch.fnmatchcase(Path(each).name if name != pattern else each, name) for each in below if each != "."
            ):
                sent = line.startswith("!")
    return sent


def _faults(text: str, ignore: str = IGNORE) -> list[str]:
    steps = _instructions(text)
    last = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    final = steps[last:]
    found = [
        f"names {host}" for host in [*HOSTS, "docker.io", "ghcr.io", "quay.io", "http://", "https://"] if host in text
    ]
    found += [
        f"{rest}: not the base by digest" for word, rest in steps if word == "FROM" and rest.split()[0] != "${BASE}"
    ]
    found += [] if steps[0] == ("ARG", "BASE") else ["BASE has a default"]
    found += ["needs BuildKit"] if re.search(r"RUN --|<<|^# *syntax", text, flags=re.MULTILINE) else []
    found += ["uses ADD"] if any(word == "ADD" for word, _ in steps) else []
    if [rest for word, rest in final if word == "USER"] != ["10001:10001"]:
        found.append("does not end as 10001")
    for word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        before, _, after = next((rest for each, rest in final if each == word), "").partition("CMD ")
        try:
            json.loads(after or before)
        except ValueError:
            found.append(f"{word} is missing or runs a shell")
    for _, rest in (step for step in steps if step[0] == "RUN"):
        for call in re.findall(r"-m pip [^&]+", rest):
            if not re.search(r"--require-hashes|--no-index|wheel .*--no-deps --no-build-isolation .* \.", call):
                found.append(f"installs what was not checked: {call}")
    found += ["runs pip in the image"] if any("pip" in rest for word, rest in final if word == "RUN") else []
    for word, rest in final:
        if word in {"ENV", "ARG", "LABEL"} and re.search(r"(?i)password|secret|token|api_key|PIP_", rest):
            found.append(f"{word} holds a secret or a build's setting")
    sources = [each for word, rest in steps if word == "COPY" and "--from" not in rest for each in rest.split()[:-1]]
    for source in sources:
        name = source.replace("[s]", "s")
        if not _is_sent(name, ignore):
            found.append(f"{name} is not sent to the builder")
        if name != "wheels" and not (ROOT / name).exists():
            found.append(f"no file {name}")
    return found


def test_it_keeps_the_rules() -> None:
    assert _faults(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FROM ${BASE}\n", "FROM python:3.13\n"),
        ("ARG BASE\n", "ARG BASE=python\n"),
        ("USER 10001:10001\n", ""),
        ("USER 10001:10001\n", "USER 10001:10001\nUSER root\n"),
        ('ENTRYPOINT ["callboard"]', "ENTRYPOINT callboard"),
        ("HEALTHCHECK", "# HEALTHCHECK"),
        ("--require-hashes --no-deps -r requirements-image-build.lock", "hatchling"),
        ("--require-hashes --no-deps --no-build-isolation", "--no-deps"),
        ("COPY src src", "COPY src src\nADD src src"),
        ("COPY src src", "COPY tests src"),
        ("RUN python3", "RUN --mount=type=cache,target=/c python3"),
        ("HOME=/app", "HOME=/app API_KEY=x"),
        ("ARG PIP_INDEX_URL", "ARG PIP_INDEX_URL=https://example.org/simple"),
        ("WORKDIR /app", "RUN python3 -m pip install --no-index x"),
    ],
)
def test_a_broken_copy_is_caught(old: str, new: str) -> None:
    """Negative control."""
    assert old in TEXT
    assert _faults(TEXT.replace(old, new))


def test_the_builder_is_sent_what_it_needs_and_no_more() -> None:
    for name in ("src/callboard/__init__.py", "wheels/a.whl", "deploy/image/health.py", "requirements-image.lock"):
        assert _is_sent(name, IGNORE), name
    for name in (
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        ".env",
        "deploy/compose/provider_key",
        "callboard.yaml",
    ):
        assert not _is_sent(name, IGNORE), name
    assert not _is_sent("src/callboard/__pycache__/a.pyc", IGNORE)
    assert _is_sent(".git/config", IGNORE.replace("\n*\n", "\n"))  # negative control


def test_its_settings_are_ones_that_we_have() -> None:
    given = dict(re.findall(r"(CALLBOARD_\w+)=(\S+)", TEXT))
    settings = Settings.load(file=[], env=given)
    assert (settings.worker.health_port, settings.worker.health_host) == (8080, "0.0.0.0")
    assert settings.log.format == "json"
    assert "EXPOSE 8080" in TEXT


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/livez": 200, "/readyz": 503}.get(self.path, 404))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the standard library
        """Say nothing."""


def _ask(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["health.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HEALTH), run_name="__main__")
    return ended.value.code


def test_the_health_check_says_what_the_worker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        monkeypatch.setenv("CALLBOARD_WORKER__HEALTH_PORT", str(port))
        assert _ask(monkeypatch) == 0
        assert _ask(monkeypatch, "/readyz") == 1
        monkeypatch.setenv("CALLBOARD_WORKER__HEALTH_PORT", "1")
        assert _ask(monkeypatch, "/livez", str(port)) == 0
        server.shutdown()
    assert _ask(monkeypatch, "/livez", str(port)) == 1
