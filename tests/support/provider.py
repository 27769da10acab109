"""A provider of models on this machine: a real HTTP server that speaks the OpenAI protocol from a script.

In a test: ``async with Provider([Say("four", when="2+2")]) as provider: ... provider.url, provider.calls``. As a
process: ``python -m tests.support.provider --port 0 --script FILE --calls FILE`` prints its URL on the first line and
runs until it is ended. ``--calls`` gets one line per call, as it arrives, so that calls can be counted over kills.

A script is a list of ``Say``, as JSON in a file. The first one that fits the call and is not used up answers it; where
none fits, the answer is ``echo: `` and the last message. One with ``when`` or ``answered`` always answers the same
question in the same way, also after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct

_PIECE_CHARS = 8
_DIMENSIONS = 8


class Want(Struct, frozen=True):
    """A call of a tool that the scripted model asks for."""

    name: str
    arguments: dict[str, Any] | str = {}
    id: str = ""


class Say(Struct, frozen=True, omit_defaults=True):
    """What the provider says to a call, and to which.

    Attributes:
        text: The answer; ``{last}`` in it is the last message's text.
        when: A text that the conversation must hold.
        answered: Number of tool answers that the conversation must hold.
        model: The model that must be asked.
        path: The end of the path that must be asked, such as ``embeddings``.
        times: How many calls it answers; 0 for any number.
        tools: Tools to call.
        finish: Reason of the end, in place of ``stop`` or ``tool_calls``.
        refusal: What the model says instead of an answer.
        usage: Input, output and cached tokens; None counts words, () leaves them out.
        status: HTTP status; beyond 200 an error with ``text`` and ``error_code``.
        error_code: Code of the error.
        headers: Further headers, such as ``Retry-After``.
        body: The whole body as it is, in place of all else; ``latin`` bytes of it are sent one by one.
        content_type: Type of ``body``.
        delay_s: Silence before the answer; below zero for ever.
        pace_s: Silence between the pieces of a stream.
        cut_after: Pieces of a stream after which the connection is broken.
        stall_after: Pieces of a stream after which nothing more comes.
        cut_bytes: Bytes of a whole answer after which the connection is broken.
        no_done: Ends a stream without the word for it.
        error_after: Pieces of a stream after which an error event comes.
    """

    text: str = ""
    when: str = ""
    answered: int | None = None
    model: str = ""
    path: str = ""
    times: int = 0
    tools: tuple[Want, ...] = ()
    finish: str = ""
    refusal: str = ""
    usage: tuple[int, ...] | None = None
    status: int = 200
    error_code: str = ""
    headers: dict[str, str] = {}
    body: str | None = None
    content_type: str = "application/json"
    delay_s: float = 0.0
    pace_s: float = 0.0
    cut_after: int | None = None
    stall_after: int | None = None
    cut_bytes: int | None = None
    no_done: bool = False
    error_after: int | None = None


class Call(Struct):
    """A call as it came.

    Attributes:
        is_left: Whether the caller went before the answer was out.
    """

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    is_answered: bool = False
    is_left: bool = False

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def last(self) -> str:
        """The last message's text."""
        messages = self.body.get("messages") or [{}]
        return str(messages[-1].get("content") or "")

    @property
    def digest(self) -> str:
        """Equal for equal questions."""
        return hashlib.sha256(msgspec.json.encode(self.body, order="deterministic")).hexdigest()[:16]


class Provider:
    """The server. It listens on the loopback only.

    Args:
        script: What it says.
        key: The key that callers must show; "" takes any and none.
        models: The models that it knows; () for any.
        calls_file: Gets a line per call.
    """

    def __init__(
        self,
        script: Sequence[Say] = (),
        *,
        key: str = "",
        models: Sequence[str] = (),
        port: int = 0,
        calls_file: Path | None = None,
    ) -> None:
        self.script = list(script)
        self.calls: list[Call] = []
        self._used: dict[int, int] = {}
        self._key = key
        self._models = models
        self._port = port
        self._calls_file = calls_file
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The base URL, with ``/v1``."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether another may follow on the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in fields if x)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET":
            listed = [{"id": model, "object": "model"} for model in self._models]
            return await _send(writer, msgspec.json.encode({"object": "list", "data": listed}))
        call = Call(number=len(self.calls) + 1, path=path, headers=headers, body=msgspec.json.decode(raw))
        self.calls.append(call)
        self._note(call)
        # the one who calls sends nothing more before the answer: an end of its stream is its going
        gone = asyncio.create_task(reader.read(1))
        said = asyncio.create_task(self._say(call, writer))
        try:
            await asyncio.wait({gone, said}, return_when=asyncio.FIRST_COMPLETED)
            call.is_left = not said.done()
        finally:
            gone.cancel()
            said.cancel()
            results = await asyncio.gather(gone, said, return_exceptions=True)
        call.is_left = call.is_left or isinstance(results[1], ConnectionError)
        return results[1] is True

    def _note(self, call: Call) -> None:
        if self._calls_file is None:
            return
        line = {
            "number": call.number,
            "path": call.path,
            "model": call.model,
            "stream": bool(call.body.get("stream")),
            "digest": call.digest,
            "last": call.last[:200],
        }
        with self._calls_file.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    async def _say(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        keeps = await self._answer(call, self._chosen(call), writer)
        call.is_answered = True
        return keeps

    def _chosen(self, call: Call) -> Say:
        if self._key and call.headers.get("authorization") != f"Bearer {self._key}":
            shown = call.headers.get("authorization", "").removeprefix("Bearer ")
            return Say(f"Incorrect API key provided: {shown}", status=401, error_code="invalid_api_key")
        if self._models and call.model not in self._models:
            return Say(f"The model `{call.model}` does not exist", status=404, error_code="model_not_found")
        for place, say in enumerate(self.script):
            if _fits(say, call) and (not say.times or self._used.get(place, 0) < say.times):
                self._used[place] = self._used.get(place, 0) + 1
                return say
        return Say("echo: {last}")

    async def _answer(self, call: Call, say: Say, writer: asyncio.StreamWriter) -> bool:
        if say.delay_s < 0:
            await asyncio.Event().wait()
        await asyncio.sleep(say.delay_s)
        if say.body is not None:
            data = say.body.encode("latin-1", "replace")
            return await _send(writer, data, status=say.status, kind=say.content_type, headers=say.headers)
        if say.status != HTTPStatus.OK:
            error = {"message": say.text, "type": "error", "code": say.error_code or None}
            data = msgspec.json.encode({"error": error})
            return await _send(writer, data, status=say.status, headers=say.headers)
        if call.path.endswith("/embeddings"):
            return await _send(writer, msgspec.json.encode(_embeddings(call)))
        if call.body.get("stream"):
            return await _stream(call, say, writer)
        data = msgspec.json.encode(_completion(call, say))
        if say.cut_bytes is not None:
            writer.write(_head(200, "application/json", len(data), {}) + data[: say.cut_bytes])
            await writer.drain()
            return False
        return await _send(writer, data, headers=say.headers)


def vector(text: str) -> list[float]:
    """Return the vector that the provider gives a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return [byte / 255 for byte in digest[:_DIMENSIONS]]


def _fits(say: Say, call: Call) -> bool:
    messages = call.body.get("messages") or []
    answered = sum(message.get("role") == "tool" for message in messages)
    return (
        (not say.when or any(say.when in str(message.get("content")) for message in messages))
        and (say.answered is None or say.answered == answered)
        and (not say.model or say.model == call.model)
        and call.path.endswith(say.path)
    )


def _text(call: Call, say: Say) -> str:
    return say.text.replace("{last}", call.last)


def _tools(call: Call, say: Say) -> list[dict[str, Any]]:
    return [
        {
            "id": want.id or f"call_{call.digest[:6]}_{number}",
            "type": "function",
            "function": {
                "name": want.name,
                "arguments": want.arguments
                if isinstance(want.arguments, str)
                else msgspec.json.encode(want.arguments).decode(),
            },
        }
        for number, want in enumerate(say.tools)
    ]


def _finish(say: Say) -> str:
    return say.finish or ("tool_calls" if say.tools else "stop")


def _usage(call: Call, say: Say) -> dict[str, Any] | None:
    if say.usage is not None and not say.usage:
        return None
    words = sum(len(str(message.get("content")).split()) for message in call.body.get("messages") or [])
    found, made, cached = (*say.usage, 0, 0)[:3] if say.usage else (words, len(_text(call, say).split()), 0)
    usage: dict[str, Any] = {"prompt_tokens": found, "completion_tokens": made, "total_tokens": found + made}
    return usage | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {})


def _completion(call: Call, say: Say) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _text(call, say) or None}
    if say.tools:
        message["tool_calls"] = _tools(call, say)
    if say.refusal:
        message["refusal"] = say.refusal
    choice = {"index": 0, "message": message, "finish_reason": _finish(say)}
    answer = {"id": f"chatcmpl-{call.number}", "object": "chat.completion", "created": 0, "model": call.model}
    usage = _usage(call, say)
    return answer | {"choices": [choice]} | ({"usage": usage} if usage else {})


def _embeddings(call: Call) -> dict[str, Any]:
    texts = call.body["input"] if isinstance(call.body["input"], list) else [call.body["input"]]
    data = [{"object": "embedding", "index": place, "embedding": vector(text)} for place, text in enumerate(texts)]
    words = sum(len(text.split()) for text in texts)
    # the order is not promised
    return {
        "object": "list",
        "model": call.model,
        "data": data[::-1],
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


async def _stream(call: Call, say: Say, writer: asyncio.StreamWriter) -> bool:
    writer.write(_head(200, "text/event-stream", None, say.headers))
    for number, piece in enumerate(_pieces(call, say)):
        if number == say.cut_after:
            await writer.drain()
            return False
        if number == say.stall_after:
            await asyncio.Event().wait()
        if number == say.error_after:
            _event(writer, msgspec.json.encode({"error": {"message": "overloaded", "type": "server_error"}}))
            break
        await asyncio.sleep(say.pace_s if number else 0)
        _event(writer, msgspec.json.encode(piece))
        await writer.drain()
    if not say.no_done:
        _event(writer, b"[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _pieces(call: Call, say: Say) -> list[dict[str, Any]]:
    """Return the events of a stream: texts and arguments in fragments, then the reason of the end, then the tokens."""
    head = {"id": f"chatcmpl-{call.number}", "object": "chat.completion.chunk", "created": 0, "model": call.model}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    text = _text(call, say)
    deltas += [{"content": text[at : at + _PIECE_CHARS]} for at in range(0, len(text), _PIECE_CHARS)]
    if say.refusal:
        deltas.append({"refusal": say.refusal})
    fragments = []
    for index, tool in enumerate(_tools(call, say)):
        arguments = tool["function"]["arguments"]
        begun = {"index": index, "id": tool["id"], "type": "function"}
        deltas.append({"tool_calls": [begun | {"function": {"name": tool["function"]["name"], "arguments": ""}}]})
        fragments += [
            (at, {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + _PIECE_CHARS]}}]})
            for at in range(0, len(arguments), _PIECE_CHARS)
        ]
    # the arguments of several calls come in turns
    deltas += [fragment for _, fragment in sorted(fragments, key=lambda pair: pair[0])]
    events = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(say)}]})
    usage = _usage(call, say)
    if usage and (call.body.get("stream_options") or {}).get("include_usage"):
        events.append(head | {"choices": [], "usage": usage})
    return events


def _event(writer: asyncio.StreamWriter, data: bytes) -> None:
    line = b"data: " + data + b"\n\n"
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


async def _send(
    writer: asyncio.StreamWriter,
    data: bytes,
    *,
    status: int = 200,
    kind: str = "application/json",
    headers: dict[str, str] | None = None,
) -> bool:
    writer.write(_head(status, kind, len(data), headers or {}) + data)
    await writer.drain()
    return True


def _head(status: int, kind: str, length: int | None, headers: dict[str, str]) -> bytes:
    size = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\n{size}\r\n{more}\r\n".encode("latin-1")


async def _main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="provider")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--calls", type=Path)
    parser.add_argument("--key", default="")
    parser.add_argument("--models", default="", help="comma-separated; any where left out")
    given = parser.parse_args(argv)
    script = msgspec.json.decode(given.script.read_bytes(), type=list[Say]) if given.script else []
    models = [model for model in given.models.split(",") if model]
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Provider(script, key=given.key, models=models, port=given.port, calls_file=given.calls) as provider:
        print(provider.url, flush=True)  # noqa: T201 - who started it reads the address there
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
