"""What one submission brings about is one tree of spans over three processes, sent by OTLP to a collector."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.acceptance.console import Background, Console, eventually

DESK = """
from msgspec import Struct
from callboard import Actor, on

class Order(Struct):
    amount: int

class Desk(Actor, name="desk"):
    @on
    async def order(self, m: Order) -> int:
        checked = await self.step("check", check, m.amount)
        self.tell("desk/archive", Note(m.amount))
        return await self.call("double", checked)

    @on
    async def note(self, m: "Note") -> None:
        pass

class Note(Struct):
    amount: int

async def check(amount: int) -> int:
    return amount
"""
DOUBLE = """
from callboard import capability

@capability("double")
def double(value: int) -> int:
    return value * 2
"""
CALLER = """
import asyncio, sys
import callboard

async def main() -> None:
    async with callboard.connect(sys.argv[1]) as client:
        print(await client.actor("desk/ann").ask({"amount": 21}, type="Order", headers=dict(SECRET="canary-4711")))

asyncio.run(main())
"""


class Collector:
    """A collector of OTLP over HTTP that keeps what it was sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.raw = b""
        keep = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep.take(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def take(self, body: bytes) -> None:
        self.raw += body
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            facts = {each.key: each.value.string_value or each.value.int_value for each in part.resource.attributes}
            self.spans.extend((facts, span) for scope in part.scope_spans for span in scope.spans)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def console(tmp_path: Path, collector: Collector) -> Iterator[Console]:
    found = Console(tmp_path)
    found.env |= {"CALLBOARD_TRACE__OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    (tmp_path / "desk.py").write_text(DESK)
    (tmp_path / "double.py").write_text(DOUBLE)
    (tmp_path / "caller.py").write_text(CALLER)
    yield found
    found.close()


def _has_spoken(worker: Background) -> bool:
    return bool(worker.events) or worker.process.poll() is not None


def _names(collector: Collector) -> set[str]:
    return {span.name for _, span in collector.spans}


WANTED = {"ask desk", "turn desk.Order", "step check", "submit double", "task double", "turn desk.Note"}


def test_an_ask_is_one_tree_over_three_processes(console: Console, collector: Collector) -> None:
    server = console.up()
    url = server.events[0]["url"]
    for file in ("desk.py", "double.py"):
        worker = console.start("worker", "start", file, "--json", "--nats", url)
        eventually(partial(_has_spoken, worker), worker.err)
    done = subprocess.run(
        [sys.executable, "caller.py", url],
        cwd=console.folder, env=console.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "42", done.stderr
    eventually(lambda: _names(collector) >= WANTED, [str(_names(collector))])
    spans = [(facts, span) for facts, span in collector.spans if span.name in WANTED]
    assert len({span.trace_id for _, span in spans}) == 1
    known = {span.span_id for _, span in collector.spans}
    roots = [span.name for _, span in spans if span.parent_span_id not in known]
    assert roots == ["ask desk"]
    assert len({facts["service.instance.id"] for facts, _ in spans}) == 3
    # payloads and headers of the user's are nobody's business
    assert b"canary-4711" not in collector.raw
