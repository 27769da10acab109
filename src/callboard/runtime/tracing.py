"""Spans of OpenTelemetry: one tree for all that a submission or an ask brings about, over processes and languages.

The context travels in the header ``traceparent`` (W3C). With tracing off, which is the default, nothing is recorded and
a context that came with a message goes on to the messages that its handler sends, so that a trace is not torn by us.
With it on, spans are made by whatever provider the program has set, or by the one that ``trace.*`` settings describe.

Spans bear names, addresses, ids and error codes; never payloads, values or error texts.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, Literal

from callboard.runtime.bus import header
from callboard.runtime.config import TraceSettings
from callboard.runtime.errors import CallboardError, ConfigError
from callboard.runtime.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "client", "producer", "consumer"]
Value = str | int | float | bool

SCOPE: Final = "callboard"
FLUSH_MS: Final = 5000
_NOTHING: Final[AbstractContextManager[None]] = nullcontext()
_STATE: Final = "tracestate"

_carried: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("callboard_trace", default=None)
_tracer: Tracer | None = None


def is_on() -> bool:
    """Return whether spans are made in this process."""
    return _tracer is not None


@contextlib.contextmanager
def running(settings: TraceSettings) -> Iterator[None]:
    """Make spans in this block, if anybody wants them; at its end those that wait are sent.

    With ``otlp_endpoint`` they are sent there. Else, where the program has set a provider of its own, that one gets
    them. Else tracing stays off and costs nothing. A block inside a block changes nothing.

    Raises:
        ConfigError: If they are to be sent and the SDK is not installed.
    """
    global _tracer  # noqa: PLW0603 - one switch a process, read on every message
    if _tracer is not None:
        yield
        return
    end = None
    if settings.otlp_endpoint is not None:
        _tracer, end = _exporting(settings, settings.otlp_endpoint)
    elif "opentelemetry.sdk.trace" in sys.modules:
        from opentelemetry import trace  # noqa: PLC0415 - only where somebody traces

        _tracer = trace.get_tracer(SCOPE, VERSION)
    try:
        yield
    finally:
        _tracer = None
        if end is not None:
            end()


def handling(
    name: str, headers: Mapping[str, str] | None, traits: Callable[[], Mapping[str, Value]]
) -> AbstractContextManager[None]:
    """Return the block in which a message is handled: a span below the one that its ``traceparent`` names.

    ``traits`` are its attributes, made only where there is a span.
    """
    incoming = headers.get(header.TRACEPARENT) if headers else None
    if _tracer is None:
        return _NOTHING if incoming is None else _carrying(incoming, (headers or {}).get(_STATE, ""))
    return _spanning(_tracer, name, "consumer", traits(), parent=headers or {})


def span(name: str, kind: Kind, traits: Callable[[], Mapping[str, Value]]) -> AbstractContextManager[None]:
    """Return the block of something done on the way: a span below the present one; nothing with tracing off."""
    return _NOTHING if _tracer is None else _spanning(_tracer, name, kind, traits())


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the present context into a message's headers, unless its sender has named one."""
    if header.TRACEPARENT in headers:
        return
    if _tracer is None:
        carried = _carried.get()
        if carried is not None:
            headers[header.TRACEPARENT] = carried[0]
            if carried[1]:
                headers[_STATE] = carried[1]
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above

    TraceContextTextMapPropagator().inject(headers)


def failed(code: str) -> None:
    """Mark the present span as one that failed, by the error's code."""
    if _tracer is not None:
        from opentelemetry import trace  # noqa: PLC0415 - as above

        _mark(trace.get_current_span(), code)


@contextlib.contextmanager
def _carrying(incoming: str, state: str) -> Iterator[None]:
    token = _carried.set((incoming, state))
    try:
        yield
    finally:
        _carried.reset(token)


@contextlib.contextmanager
def _spanning(
    tracer: Tracer,
    name: str,
    kind: Kind,
    attributes: Mapping[str, Value] | None,
    *,
    parent: Mapping[str, str] | None = None,
) -> Iterator[None]:
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as above

    with tracer.start_as_current_span(
        name,
        context=None if parent is None else _context(parent),
        kind=SpanKind[kind.upper()],
        attributes=attributes,
        # the text of an error may quote a payload
        record_exception=False,
        set_status_on_exception=False,
    ) as found:
        try:
            yield
        except BaseException as error:
            _mark(found, error.code if isinstance(error, CallboardError) else type(error).__name__)
            raise


def _context(headers: Mapping[str, str]) -> Context:
    from opentelemetry.context import Context  # noqa: PLC0415 - as above
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above

    carrier = {name: headers[name] for name in (header.TRACEPARENT, _STATE) if name in headers}
    # what came in decides alone: a worker's own loop has no part in the sender's tree
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _mark(found: Span, code: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - as above

    found.set_attribute("error.type", code)
    found.set_status(Status(StatusCode.ERROR))


def _exporting(settings: TraceSettings, endpoint: str) -> tuple[Tracer, Callable[[], None]]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - slow
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - slow
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - slow
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - slow
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415 - slow
    except ImportError as error:
        message = "trace.otlp_endpoint is set and OpenTelemetry's SDK is not installed: pip install 'callboard[otel]'"
        raise ConfigError(message) from error
    provider = TracerProvider(
        resource=Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": VERSION,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        ),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))

    def end() -> None:
        # sends what waits; a collector that is away has five seconds
        _ = provider.force_flush(FLUSH_MS)
        provider.shutdown()

    return provider.get_tracer(SCOPE, VERSION), end
