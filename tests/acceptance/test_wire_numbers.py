"""What docs/wire.md states of the server holds on the server: other languages' clients are written from that page."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from callboard.runtime.embedded import EmbeddedServer
from tests.acceptance.conftest import Api

pytestmark = pytest.mark.usefixtures("server")

TASK = "cb.task.search"
NAME = "search-normal"


def consumer(*, ack_wait_s: float = 4) -> dict[str, Any]:
    return {
        "stream_name": "CB_WORK",
        "action": "create",
        "config": {
            "durable_name": NAME,
            "name": NAME,
            "filter_subject": TASK,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "ack_wait": int(ack_wait_s * 1e9),
            "max_deliver": -1,
            "max_ack_pending": 4096,
        },
    }


class Puller:
    """An inbox and the pulls that are answered there."""

    def __init__(self, raw: Client) -> None:
        self._raw = raw
        self.inbox = raw.new_inbox()
        self.arrived: asyncio.Queue[Msg] = asyncio.Queue()

    async def pull(self, **request: object) -> None:
        self.subscription = await self._raw.subscribe(self.inbox, cb=self.arrived.put)
        await self._raw.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.CB_WORK.{NAME}", json.dumps(request).encode(), reply=self.inbox
        )
        await self._raw.flush()

    async def next(self, *, within_s: float = 5) -> Msg:
        return await asyncio.wait_for(self.arrived.get(), within_s)


async def ready(raw: Client, api: Api, *, ack_wait_s: float = 4) -> None:
    assert "error" not in await api(f"CONSUMER.CREATE.CB_WORK.{NAME}.{TASK}", consumer(ack_wait_s=ack_wait_s))
    await raw.request(TASK, b'{"n":1}')


async def answer_of(raw: Client, subject: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await raw.request(subject, b"{}", headers=headers)).data)
    return answer


def status_of(message: Msg) -> str:
    return (message.headers or {}).get("Status", "")


async def test_a_submitter_is_told_the_sequence_and_of_a_repeat(raw: Client) -> None:
    assert await answer_of(raw, TASK) == {"stream": "CB_WORK", "seq": 1}
    assert await answer_of(raw, TASK, {"Nats-Msg-Id": "search/a"}) == {"stream": "CB_WORK", "seq": 2}
    repeated = await answer_of(raw, "cb.task.other", {"Nats-Msg-Id": "search/a"})
    assert repeated == {"stream": "CB_WORK", "seq": 2, "duplicate": True}


async def test_a_full_queue_and_a_second_record_differ_only_in_their_text(raw: Client, api: Api) -> None:
    work = (await api("STREAM.INFO.CB_WORK"))["config"]
    await api("STREAM.UPDATE.CB_WORK", work | {"max_msgs": 1})
    await answer_of(raw, TASK)
    full = (await answer_of(raw, TASK))["error"]
    assert full == {"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}
    subject = "cb.result.search.~1"
    assert (await answer_of(raw, subject))["seq"] == 1
    second = (await answer_of(raw, subject))["error"]
    assert second == {"code": 503, "err_code": 10077, "description": "maximum messages per subject exceeded"}
    expecting = (await answer_of(raw, subject, {"Nats-Expected-Last-Subject-Sequence": "0"}))["error"]
    assert expecting == {"code": 400, "err_code": 10071, "description": "wrong last sequence: 1"}


async def test_a_record_is_read_by_direct_get(raw: Client) -> None:
    subject = "$JS.API.DIRECT.GET.CB_LEDGER.cb.result.search.~1"
    assert status_of(await raw.request(subject, b"")) == "404"
    await raw.request("cb.result.search.~1", b'{"v":1}')
    found = await raw.request(subject, b"")
    assert (found.data, status_of(found)) == (b'{"v":1}', "")


async def test_record_and_attempts_are_read_in_one_request(raw: Client) -> None:
    for subject in ("cb.attempt.search.~1.1", "cb.result.search.~1", "cb.attempt.search.~1.2"):
        await raw.request(subject, b"{}")

    async def read(task: str) -> list[tuple[str, str]]:
        inbox = raw.new_inbox()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await raw.subscribe(inbox, cb=arrived.put)
        body = json.dumps({"multi_last": [f"cb.result.search.{task}", f"cb.attempt.search.{task}.*"]}).encode()
        await raw.publish("$JS.API.DIRECT.GET.CB_LEDGER", body, reply=inbox)
        seen: list[tuple[str, str]] = []
        while not seen or not seen[-1][1]:
            message = await asyncio.wait_for(arrived.get(), 5)
            seen.append(((message.headers or {}).get("Nats-Subject", ""), status_of(message)))
        await subscription.unsubscribe()
        return seen

    assert await read("~1") == [
        ("cb.attempt.search.~1.1", ""),
        ("cb.result.search.~1", ""),
        ("cb.attempt.search.~1.2", ""),
        ("", "204"),
    ]
    assert await read("~2") == [("", "404")]


async def test_creating_a_consumer_never_changes_one_that_is_there(raw: Client, api: Api) -> None:
    await ready(raw, api)
    assert "error" not in await api(f"CONSUMER.CREATE.CB_WORK.{NAME}.{TASK}", consumer())
    changed = await api(f"CONSUMER.CREATE.CB_WORK.{NAME}.{TASK}", consumer(ack_wait_s=9))
    assert changed["error"]["err_code"] == 10148


async def test_a_pull_ends_with_a_status(raw: Client, api: Api) -> None:
    await ready(raw, api)
    puller = Puller(raw)
    await puller.pull(batch=3, expires=400_000_000)
    assert (await puller.next()).data == b'{"n":1}'
    expired = await puller.next()
    assert (status_of(expired), (expired.headers or {})["Nats-Pending-Messages"]) == ("408", "2")
    none_there = Puller(raw)
    await none_there.pull(batch=1, no_wait=True)
    assert status_of(await none_there.next()) == "404"
    orphaned = Puller(raw)
    await orphaned.pull(batch=1, expires=5_000_000_000)
    await api(f"CONSUMER.DELETE.CB_WORK.{NAME}")
    assert status_of(await orphaned.next()) == "409"
    missing = Puller(raw)
    await missing.pull(batch=1, expires=5_000_000_000)
    assert status_of(await missing.next()) == "503"


async def test_a_pull_without_its_inbox_is_dropped_at_once(raw: Client, api: Api) -> None:
    await api(f"CONSUMER.CREATE.CB_WORK.{NAME}.{TASK}", consumer())
    gone, here = Puller(raw), Puller(raw)
    await gone.pull(batch=1, expires=30_000_000_000)
    await gone.subscription.unsubscribe()
    await here.pull(batch=1, expires=30_000_000_000)
    await raw.request(TASK, b"{}")
    assert (await here.next(within_s=1)).reply.split(".")[4:6] == ["1", "1"]


async def test_a_stale_nak_starts_a_task_twice_although_it_is_extended(raw: Client, api: Api) -> None:
    """Why section 4 forbids it."""
    await ready(raw, api, ack_wait_s=0.5)
    stale, holder, third = Puller(raw), Puller(raw), Puller(raw)
    await stale.pull(batch=1, expires=10_000_000_000)
    first = await stale.next()
    await holder.pull(batch=1, expires=10_000_000_000)
    await raw.publish((await holder.next()).reply, b"+WPI")
    await third.pull(batch=1, expires=10_000_000_000)
    await raw.publish(first.reply, b'-NAK {"delay":1000000}')
    assert (await third.next(within_s=0.4)).reply.split(".")[4] == "3"


async def test_an_extension_after_a_nak_replaces_its_delay(raw: Client, api: Api) -> None:
    """Why section 4 forbids it."""
    await ready(raw, api, ack_wait_s=0.5)
    puller = Puller(raw)
    await puller.pull(batch=1, expires=30_000_000_000)
    reply = (await puller.next()).reply
    await raw.publish(reply, b'-NAK {"delay":20000000000}')
    await raw.publish(reply, b"+WPI")
    again = Puller(raw)
    await again.pull(batch=1, expires=30_000_000_000)
    assert (await again.next(within_s=3)).reply.split(".")[4] == "2"


async def test_deleting_a_claimed_task_leaves_its_answers_without_effect(raw: Client, api: Api) -> None:
    await ready(raw, api)
    puller = Puller(raw)
    await puller.pull(batch=1, expires=5_000_000_000)
    reply = (await puller.next()).reply
    assert (await api("STREAM.MSG.DELETE.CB_WORK", {"seq": 1}))["success"]
    for answer in (b"+WPI", b"+ACK"):
        assert (await raw.request(reply, answer)).data == b""
    assert (await api(f"CONSUMER.INFO.CB_WORK.{NAME}"))["num_ack_pending"] == 0


async def test_a_schedule_fires_in_its_own_stream_and_only_there(raw: Client, api: Api) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
    headers = {"Nats-Schedule": f"@at {at}", "Cb-Task-Id": "t", "Nats-Msg-Id": "t"}
    elsewhere = await answer_of(raw, "cb.later.t", headers | {"Nats-Schedule-Target": TASK})
    assert elsewhere["error"]["err_code"] == 10190
    fired: asyncio.Queue[Msg] = asyncio.Queue()
    assert "error" not in await answer_of(raw, "cb.later.t", headers | {"Nats-Schedule-Target": "cb.due.search"})
    await api(
        "CONSUMER.CREATE.CB_LATER.watch",
        {
            "stream_name": "CB_LATER",
            "config": {
                "name": "watch",
                "ack_policy": "explicit",
                "filter_subject": "cb.due.search",
                "inactive_threshold": 60_000_000_000,
            },
        },
    )
    inbox = raw.new_inbox()
    await raw.subscribe(inbox, cb=fired.put)
    await raw.publish("$JS.API.CONSUMER.MSG.NEXT.CB_LATER.watch", b'{"batch":1,"expires":5000000000}', reply=inbox)
    message = await asyncio.wait_for(fired.get(), 5)
    assert (message.headers or {})["Cb-Task-Id"] == "t"
    assert "Nats-Msg-Id" not in (message.headers or {})


async def test_no_stream_can_refuse_when_full_and_hold_schedules(empty_server: EmbeddedServer, api: Api) -> None:
    wanted = {"name": "BOTH", "subjects": ["both"], "discard": "new", "allow_msg_schedules": True}
    assert (await api("STREAM.CREATE.BOTH", wanted))["error"]["err_code"] == 10052
