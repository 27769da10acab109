"""Each role against what it must not do: ``python -m tests.integration.security_matrix`` prints the table."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError, PermissionDeniedError
from callboard.runtime.security.folder import Folder
from tests.support.secured import Secured, planned

USERS = (
    "submitter",
    "worker-gpu",
    "worker-cpu",
    "host-desk",
    "host-back",
    "registry",
    "agent-node",
    "auditor",
    "approver",
    "operator",
)
WORKERS = frozenset(USERS[1:6])
HOSTS = frozenset({"host-desk", "host-back", "registry"})
GUESTS = frozenset({"submitter", "worker-gpu", "worker-cpu", "agent-node"})
OPERATOR = frozenset({"operator"})
PEOPLE = frozenset({"auditor", "approver"})
NOBODY: frozenset[str] = frozenset()
_API = "$JS.API."
_ALLOWED_WAIT_S = 0.4


class Action(Struct, frozen=True):
    """Something to try.

    Attributes:
        may: Users who are meant to be able to; the table in the code is not asked, or it would prove itself.
        is_heard: Subscribe rather than publish.
    """

    name: str
    subject: str
    may: frozenset[str]
    is_heard: bool = False


ACTIONS = (
    Action("submit a task", "cb.task.search", frozenset(USERS) - {"auditor", "approver", "registry", "agent-node"}),
    Action("pull from the pool gpu", _API + "CONSUMER.MSG.NEXT.CB_WORK.search-normal", OPERATOR | {"worker-gpu"}),
    Action("pull from the pool cpu", _API + "CONSUMER.MSG.NEXT.CB_WORK.embed-normal", OPERATOR | {"worker-cpu"}),
    Action("pull due tasks of gpu", _API + "CONSUMER.MSG.NEXT.CB_LATER.search-due", OPERATOR | {"worker-gpu"}),
    Action("ack a task of gpu", "$JS.ACK.CB_WORK.search-normal.1.1.1.1.0", OPERATOR | {"worker-gpu"}),
    Action("record a result of gpu", "cb.result.search.Forged", OPERATOR | {"worker-gpu"}),
    Action("record an attempt of cpu", "cb.attempt.embed.Forged.1", frozenset({"worker-cpu"})),
    Action("write a dead letter of gpu", "cb.dead.task.search.Forged", OPERATOR | {"worker-gpu"}),
    Action("read the queue", _API + "DIRECT.GET.CB_WORK", OPERATOR),
    Action("make a consumer of the queue", _API + "CONSUMER.CREATE.CB_WORK.mine", OPERATOR),
    Action("delete a consumer of the queue", _API + "CONSUMER.DELETE.CB_WORK.search-low", OPERATOR),
    Action("delete a waiting task", _API + "STREAM.MSG.DELETE.CB_WORK", OPERATOR),
    Action("read the whole ledger", _API + "DIRECT.GET.CB_LEDGER", WORKERS - {"registry"} | OPERATOR | {"auditor"}),
    Action("create a stream", _API + "STREAM.CREATE.Mine", OPERATOR),
    Action("change a stream", _API + "STREAM.UPDATE.CB_WORK", OPERATOR),
    Action("delete a stream", _API + "STREAM.DELETE.Missing", OPERATOR),
    Action("purge the queue", _API + "STREAM.PURGE.CB_WORK", OPERATOR),
    Action("purge the ledger", _API + "STREAM.PURGE.CB_LEDGER", OPERATOR),
    Action("purge the audit copy", _API + "STREAM.PURGE.CB_AUDIT", OPERATOR),
    Action("read the audit copy", _API + "CONSUMER.CREATE.CB_AUDIT.read-1", HOSTS | OPERATOR | {"auditor"}),
    Action("write a late copy for the audit", "cb.gap.state.greeter.Ann.1", HOSTS | OPERATOR),
    Action("list the streams", _API + "STREAM.NAMES", OPERATOR | {"auditor"}),
    Action("write the state of a greeter", "cb.state.greeter.Ann", frozenset({"host-desk"})),
    Action("write a step of a clerk", "cb.step.clerk.Bob.1.a.b.0", frozenset({"host-back"})),
    Action("take a partition of greeter", "cb.cursor.greeter.0", frozenset({"host-desk"})),
    Action("write mail", "cb.mail.greeter.Ann", HOSTS | OPERATOR),
    Action("hand in mail", "cb.tell.greeter.Ann", GUESTS | OPERATOR),
    Action("purge what is handed in", _API + "STREAM.PURGE.CB_POST", HOSTS | OPERATOR),
    Action("have a task held for later", "cb.later.Forged", WORKERS - {"registry"} | OPERATOR),
    Action("have mail held for later", "cb.timer.client.Forged.tell", OPERATOR),
    Action("read actors' mail", _API + "CONSUMER.CREATE.CB_ACTORS.read-1", HOSTS | OPERATOR | {"auditor"}),
    Action("enter an agent of no host's", "$KV.CB_REGISTRY.agent.x.y", OPERATOR | {"registry"}),
    Action("enter a greeter", "$KV.CB_REGISTRY.agent.greeter.Ann", OPERATOR | {"registry", "host-desk"}),
    Action("enter a clerk", "$KV.CB_REGISTRY.agent.clerk.Bob", OPERATOR | {"registry", "host-back"}),
    Action("write beside the records", "$KV.CB_REGISTRY.x", OPERATOR),
    Action("delete a record past the bucket", _API + "STREAM.MSG.DELETE.KV_CB_REGISTRY", OPERATOR),
    Action("purge the records", _API + "STREAM.PURGE.KV_CB_REGISTRY", OPERATOR),
    Action("register any agent", "cb.registry.register", OPERATOR),
    Action("register a node", "cb.registry.register.node", OPERATOR | {"agent-node"}),
    Action("register a greeter", "cb.registry.register.greeter", OPERATOR),
    Action("deregister any agent", "cb.registry.deregister", OPERATOR),
    Action("beat as any agent", "cb.registry.beat", OPERATOR),
    Action("beat as a node", "cb.registry.beat.node", OPERATOR | {"agent-node"}),
    Action("look agents up", "cb.registry.find", frozenset(USERS) - {"approver"}),
    Action("pick an agent", "cb.registry.pick", frozenset(USERS) - {"auditor", "approver", "registry"}),
    Action("say that an agent changed", "cb.registry.changed", OPERATOR | {"registry"}),
    Action("lead the registry", "cb.cursor.registry.0", frozenset({"registry"})),
    Action("beat as a group of gpu", "cb.group.worker-gpu.Forged", frozenset({"worker-gpu"})),
    Action("beat as nobody's group", "cb.group.Forged", NOBODY),
    Action("record a result of gpu on labels", "cb.result.search--zone_a.Forged", OPERATOR | {"worker-cpu"}),
    Action(
        "pull from a pool by label", _API + "CONSUMER.MSG.NEXT.CB_WORK.search--zone_a-low", OPERATOR | {"worker-cpu"}
    ),
    Action("see where tasks wait", _API + "CONSUMER.LIST.CB_WORK", WORKERS | OPERATOR),
    Action("pause a pool", "$KV.CB_CONFIG.pause.search", OPERATOR),
    Action("beat as a worker of gpu", "cb.beat.worker-gpu.Forged", frozenset({"worker-gpu"})),
    Action("beat as nobody's worker", "cb.beat.Forged", NOBODY),
    Action("order a worker", "cb.ctl.worker.worker-gpu.x", OPERATOR),
    Action("order an actor", "cb.ctl.actor.greeter.Ann", OPERATOR),
    Action("cancel a task", "cb.ctl.cancel", OPERATOR),
    Action("decide an approval", "cb.ask.approval.Forged", OPERATOR | {"approver"}),
    Action("mail a decision", "cb.mail.approval.Forged", OPERATOR),
    Action("write an approval", "cb.state.approval.Forged", NOBODY),
    Action("hand in a decision", "cb.tell.approval.Forged", OPERATOR),
    Action("ask for approval", "cb.mail.petition.1", HOSTS | OPERATOR),
    Action("hand in a petition", "cb.tell.petition.1", GUESTS | OPERATOR),
    Action("hand in what raises a budget", "cb.tell.budget.run%2FForged", OPERATOR),
    Action("read an approval", _API + "DIRECT.GET.CB_ACTORS.cb.state.approval.Mine", HOSTS | OPERATOR | PEOPLE),
    Action("change a budget", "cb.ask.budget.run%2FForged", frozenset({"host-desk", "host-back"}) | OPERATOR),
    Action("say that a run led to a task", "cb.call.greeter.Ann", HOSTS | OPERATOR),
    Action("take what turns ask of a clerk", "cb.call.clerk.*", OPERATOR | {"host-back"}, is_heard=True),
    Action("decide an approval as a turn", "cb.call.approval.Forged", OPERATOR),
    Action(
        "change a budget as a turn", "cb.call.budget.run%2FForged", frozenset({"host-desk", "host-back"}) | OPERATOR
    ),
    Action("mail to a budget", "cb.mail.budget.run%2FForged", frozenset({"host-desk", "host-back"}) | OPERATOR),
    Action(
        "follow tokens",
        _API + "CONSUMER.CREATE.CB_TOKENS.read-1",
        frozenset({"host-desk", "host-back", "auditor"}) | OPERATOR,
    ),
    Action("accuse a worker of being dead", "cb.ctl.dead", WORKERS | OPERATOR),
    Action("ask the system account", "$SYS.REQ.SERVER.PING", NOBODY),
    Action("answer into an inbox", "_INBOX.submitter.x", WORKERS | OPERATOR | {"agent-node"}),
    Action("hear everything", ">", NOBODY, is_heard=True),
    Action("hear all inboxes", "_INBOX.>", NOBODY, is_heard=True),
    Action("hear the operator's inbox", "_INBOX.operator.>", OPERATOR, is_heard=True),
    Action("hear tasks", "cb.task.>", OPERATOR, is_heard=True),
    Action("hear results", "cb.result.>", OPERATOR, is_heard=True),
    Action("hear mail", "cb.mail.>", OPERATOR, is_heard=True),
    Action("take asks to a clerk", "cb.ask.clerk.*", OPERATOR | {"host-back"}, is_heard=True),
    Action("take look-ups", "cb.registry.find", OPERATOR | {"registry"}, is_heard=True),
    Action("take registrations", "cb.registry.register.*", OPERATOR | {"registry"}, is_heard=True),
    Action("take asks to a node", "cb.ask.node.*", OPERATOR | {"agent-node"}, is_heard=True),
    Action("hear how groups are", "cb.group.>", frozenset(USERS) - {"approver"}, is_heard=True),
    Action("take orders of a group of gpu", "cb.ctl.worker.worker-gpu.g", OPERATOR | {"worker-gpu"}, is_heard=True),
    Action("hear which labels are asked for", "cb.ctl.pools", WORKERS | OPERATOR, is_heard=True),
    Action("answer discovery", "$SRV.>", WORKERS, is_heard=True),
    Action("answer pings for gpu", "cb.ping.worker-gpu.x", OPERATOR | {"worker-gpu"}, is_heard=True),
    Action("take orders of gpu", "cb.ctl.worker.worker-gpu.x", OPERATOR | {"worker-gpu"}, is_heard=True),
    Action("hear the system account", "$SYS.>", NOBODY, is_heard=True),
    Action("hear the JetStream API", "$JS.API.>", NOBODY, is_heard=True),
)


async def attempt(bus: Bus, action: Action) -> str:
    """Return "denied", "allowed", or what else came of it; a refusal must name the subject."""
    try:
        if action.is_heard:
            await (await bus.subscribe(action.subject, lambda _: None)).close()
        else:
            await bus.request(action.subject, b"", timeout_s=_ALLOWED_WAIT_S)
    except PermissionDeniedError as error:
        is_named = error.subject == action.subject and action.subject in str(error)
        return "denied" if is_named else f"denied, naming {error.subject!r}: {error}"
    except BusError:
        return "allowed"
    return "allowed"


async def matrix(servers: Secured, users: Sequence[str] = USERS) -> dict[tuple[str, str], str]:
    """Return what came of each action by each user."""
    buses = {user: await servers.bus(user) for user in users}

    async def row(user: str) -> list[str]:
        return [await attempt(buses[user], action) for action in ACTIONS]

    rows = await asyncio.gather(*(row(user) for user in users))
    return {
        (user, action.name): found
        for user, outcomes in zip(users, rows, strict=True)
        for action, found in zip(ACTIONS, outcomes, strict=True)
    }


def surprises(found: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the outcomes that are not as meant."""
    wanted = {action.name: action.may for action in ACTIONS}
    return [
        f"{user}: {name}: {outcome}"
        for (user, name), outcome in found.items()
        if outcome != ("allowed" if user in wanted[name] else "denied")
    ]


def report(found: Mapping[tuple[str, str], str]) -> str:
    """Return the table as text."""
    width = max(len(action.name) for action in ACTIONS)
    lines = [" " * width + "".join(f"  {user}" for user in USERS)]
    for action in ACTIONS:
        cells = (found[user, action.name].center(len(user) + 2) for user in USERS)
        lines.append(f"{action.name:<{width}}" + "".join(cells).rstrip())
    return "\n".join(lines)


async def run(folder: Path) -> dict[tuple[str, str], str]:
    """Try everything on a server made for it."""
    files = Folder(folder)
    pools, hosts = ["gpu=search", "cpu=embed,search--zone_a"], ["desk=greeter", "back=clerk"]
    files.write(planned(pools=pools, hosts=hosts, agents=["node=node"], has_tls=False))
    servers = await Secured(files).start()
    try:
        await servers.provision("search", "embed", "search--zone_a")
        return await matrix(servers)
    finally:
        await servers.close()


def main() -> int:
    """Print the table; 1 when something was not as meant."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder)))
    print(report(found))  # noqa: T201 - what it is for
    for line in surprises(found):
        print(f"NOT AS MEANT  {line}")  # noqa: T201 - as above
    return 1 if surprises(found) else 0


if __name__ == "__main__":
    sys.exit(main())
