"""Streams and consumers through the JetStream API."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import json

from callboard.runtime.bus.base import ConsumerConfig, ConsumerInfo, ServerInfo, StreamConfig, StreamInfo
from callboard.runtime.bus.check import changed_settings, check_filter, check_name
from callboard.runtime.bus.jetstream_call import Calls
from callboard.runtime.bus.jetstream_link import Link, Proof, Raw
from callboard.runtime.bus.jetstream_wire import (
    DELETE_FAILED,
    Json,
    from_consumer,
    from_stream,
    is_led,
    overlay,
    shows_leader,
    to_consumer_info,
    to_error,
    to_stream,
    to_stream_info,
)
from callboard.runtime.errors import ApiError, BusError, NoLeaderError, NoRespondersError, NotFoundError, TopologyError

API_TIMEOUT_S = 5.0
API_PREFIX = "$JS.API."

_NAME_TAKEN = 10058
_DETAILS_LIMIT = 10_000
# What only reads may be asked again.
_READS = ("STREAM.MSG.GET.", "STREAM.INFO.", "CONSUMER.INFO.")


class Administration:
    """The part of the bus that makes, changes and describes streams and consumers."""

    _link: Link
    _api_calls: Calls[Raw]
    _known_stream: str
    _server: ServerInfo

    async def _api(self, path: str, body: Json | None = None, *, timeout_s: float = API_TIMEOUT_S) -> Json:
        """Ask the API and return its answer. What only reads is asked again while a stream has no leader to answer.

        Raises:
            BusError: If it refused, or nobody answered.
        """
        subject, data = API_PREFIX + path, json.encode(body) if body else b""
        try:
            raw, _ = await self._api_calls.one(subject, data, timeout_s, repeats=self._is_repeated(path))
        except NoRespondersError as error:
            raise _silent(subject) from error
        return self._heard(raw, path)

    async def _api_many(self, path: str, bodies: Sequence[Json]) -> list[Json | NotFoundError]:
        """Ask the API the same for each of ``bodies``, pipelined, and return the answers in their order.

        Raises:
            BusError: If one was refused for another reason than that it does not exist, or not answered.
        """
        subject = API_PREFIX + path
        call = self._api_calls.open([subject] * len(bodies), API_TIMEOUT_S)

        async def send() -> None:
            for index, (body, reply) in enumerate(zip(bodies, self._api_calls.reply_subjects(call), strict=True)):
                if self._api_calls.is_open(call, index):
                    await self._link.send(subject, json.encode(body), reply, None)

        if self._is_repeated(path):
            call.again = send
        try:
            await send()
        except BaseException:
            self._api_calls.forget(call)
            raise
        answers: list[Json | NotFoundError] = []
        for found in await self._api_calls.wait(call):
            if isinstance(found, NoRespondersError):
                raise _silent(subject) from found
            if isinstance(found, BusError):
                raise found
            try:
                answers.append(self._heard(found, path) if found is not None else {})
            except NotFoundError as error:
                answers.append(error)
        return answers

    def _is_repeated(self, path: str) -> bool:
        """Return whether a question is asked again: a cluster loses what it is sent during an election."""
        return path.startswith(_READS) and bool(self._server.cluster)

    def _heard(self, raw: Raw, path: str) -> Json:
        """Return an answer of the API, and note whether it came from one that reaches a leader.

        Raises:
            BusError: If it is a refusal.
        """
        try:
            answer = _answer(raw, path)
        except BusError as error:
            if isinstance(error, NoLeaderError):
                self._link.answered(is_leader=False)
            raise
        # without a leader's name a server that may be cut off tells what it last knew of a stream: that says nothing,
        # and neither do the refusals and lists of a leader of the cluster that may be cut off
        if (is_leader := is_led(answer)) is not None:
            self._link.answered(is_leader=is_leader)
            if not self._known_stream:
                self._know(answer.get("stream_name") or answer["config"]["name"])
        return answer

    def _know(self, stream: str) -> None:
        """Remember a stream to ask about; "" for none."""
        if stream != self._known_stream:
            self._known_stream = stream
            self._link.proving(Proof(f"{API_PREFIX}STREAM.INFO.{stream}" if stream else "", shows_leader))

    # --- streams

    async def stream_info(self, name: str, *, with_damage: bool = False) -> StreamInfo | None:
        """Return a stream's settings and state, or None when it does not exist.

        What was damaged is told beside every single deleted sequence: it is asked for where those are few.
        """
        body = await self._stream(name)
        if body is None:
            return None
        info = to_stream_info(body)
        if not with_damage or info.deleted > _DETAILS_LIMIT:
            return info
        # seen with nats-server 2.15.1: without this word the state says nothing of damage
        return to_stream_info(await self._api(f"STREAM.INFO.{name}", {"deleted_details": True}), has_details=True)

    async def stream_names(self) -> list[str]:
        """Return the names of all streams of the account, sorted. One request per 1,024."""
        names: list[str] = []
        while True:
            answer = await self._api("STREAM.NAMES", {"offset": len(names)})
            found = answer.get("streams") or []
            names += found
            if not found or len(names) >= answer.get("total", 0):
                return sorted(names)

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create it; succeeds when it exists with the same settings.

        Raises:
            TopologyError: If one with other settings exists, or the server refused or changed a setting.
        """
        check_name(config.name, what="stream")
        try:
            answer = await self._api(f"STREAM.CREATE.{config.name}", from_stream(config))
        except ApiError as error:
            if error.err_code != _NAME_TAKEN:
                raise TopologyError(str(error)) from error
            found = await self._stream(config.name)
            changed = changed_settings(config, to_stream(found["config"])) if found else []
            message = f"stream {config.name} exists with other settings: {'; '.join(changed) or error}"
            raise TopologyError(message) from error
        except BusError as error:
            raise _as_topology(error) from error
        return _compared(config, answer)

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change settings in place; those that ``StreamConfig`` does not know stay as they are. Two round trips.

        Raises:
            TopologyError: If the server refused or silently changed a setting.
            NotFoundError: If it does not exist.
        """
        found = await self._stream(config.name)
        if found is None:
            message = f"stream {config.name} does not exist"
            raise NotFoundError(message)
        try:
            answer = await self._api(f"STREAM.UPDATE.{config.name}", overlay(found["config"], config))
        except BusError as error:
            raise _as_topology(error) from error
        return _compared(config, answer)

    async def delete_stream(self, name: str) -> bool:
        """Delete a stream with all it holds; False when there was none."""
        check_name(name, what="stream")
        try:
            await self._api(f"STREAM.DELETE.{name}")
        except NotFoundError:
            return False
        return True

    async def subject_counts(self, stream: str, subject: str = ">") -> dict[str, int]:
        """Return how many messages each matching subject holds. One request per 100,000 subjects."""
        check_name(stream, what="stream")
        check_filter(subject)
        counts: dict[str, int] = {}
        while True:
            answer = await self._api(f"STREAM.INFO.{stream}", {"subjects_filter": subject, "offset": len(counts)})
            found = answer["state"].get("subjects") or {}
            counts |= found
            if not found or len(counts) >= answer.get("total", 0):
                return counts

    async def purge(self, stream: str, *, subject: str | None = None, below_seq: int | None = None) -> int:
        """Delete messages, all or those on ``subject`` and before ``below_seq``; return how many."""
        check_name(stream, what="stream")
        body: Json = {}
        if subject is not None:
            check_filter(subject)
            body["filter"] = subject
        if below_seq is not None:
            if below_seq <= 1:
                # The API reads 0 as "all".
                return 0
            body["seq"] = below_seq
        answer = await self._api(f"STREAM.PURGE.{stream}", body)
        return int(answer.get("purged", 0))

    async def delete_message(self, stream: str, seq: int) -> bool:
        """Delete one message, without overwriting its bytes on disk; False when there was none."""
        check_name(stream, what="stream")
        try:
            await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            # The same number stands for "not permitted"; only the text tells them apart.
            if error.err_code == DELETE_FAILED and "EOF" in str(error):
                return False
            raise
        except NotFoundError:
            if await self._stream(stream) is None:
                raise
            return False
        return True

    async def _stream(self, name: str) -> Json | None:
        check_name(name, what="stream")
        try:
            answer = await self._api(f"STREAM.INFO.{name}")
        except NotFoundError:
            return None
        self._known_stream = name
        return answer

    # --- consumers

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        """Return a consumer's settings and state, or None."""
        check_name(stream, what="stream")
        check_name(name, what="consumer")
        try:
            return to_consumer_info(await self._api(f"CONSUMER.INFO.{stream}.{name}"))
        except NotFoundError:
            return None

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        """Return all durable consumers of a stream. One request per 256.

        Raises:
            NotFoundError: If the stream does not exist.
        """
        check_name(stream, what="stream")
        bodies: list[Json] = []
        while True:
            answer = await self._api(f"CONSUMER.LIST.{stream}", {"offset": len(bodies)})
            found = answer.get("consumers") or []
            bodies += found
            if not found or len(bodies) >= answer.get("total", 0):
                return [to_consumer_info(body) for body in bodies if body["config"].get("durable_name")]

    async def create_consumer(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create or update a durable consumer.

        Raises:
            TopologyError: If the server refused it.
            NotFoundError: If the stream does not exist.
        """
        check_name(stream, what="stream")
        check_name(config.name, what="consumer")
        check_filter(config.filter_subject)
        path = f"CONSUMER.CREATE.{stream}.{config.name}.{config.filter_subject}"
        try:
            answer = await self._api(path, {"stream_name": stream, "config": from_consumer(config), "action": ""})
        except BusError as error:
            raise _as_topology(error) from error
        return to_consumer_info(answer)

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; False when there was none."""
        check_name(stream, what="stream")
        check_name(name, what="consumer")
        try:
            await self._api(f"CONSUMER.DELETE.{stream}.{name}")
        except NotFoundError:
            return False
        return True


def _answer(raw: Raw, path: str) -> Json:
    try:
        answer: Json = json.decode(raw.data)
    except ValueError as error:
        message = f"{API_PREFIX}{path}: the answer is no JSON"
        raise BusError(message) from error
    failure = answer.get("error")
    if failure:
        text = failure.get("description", "")
        raise to_error(failure.get("code", 0), failure.get("err_code", 0), text, what=path)
    return answer


def _silent(subject: str) -> NoRespondersError:
    return NoRespondersError(f"{subject}: JetStream does not answer; it is switched off, starting or without a leader")


def _compared(wanted: StreamConfig, answer: Json) -> StreamInfo:
    info = to_stream_info(answer)
    changed = changed_settings(wanted, info.config)
    if changed:
        # For example, schedules switch the ban on purges off without a word.
        message = f"the server took stream {wanted.name} with other settings than asked: {'; '.join(changed)}"
        raise TopologyError(message)
    return info


def _as_topology(error: BusError) -> BusError:
    # What says nothing about the settings (timeouts, permissions, a missing stream) stays what it is.
    return TopologyError(str(error)) if isinstance(error, ApiError) or error.code == "backpressure" else error
