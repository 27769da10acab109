"""The one table of who may publish and hear what. Servers' configuration, tests and docs/security.md come from it.

A subject may hold names in braces, filled in for each user: ``{user}``, ``{capability}``, ``{lane}`` (the durable
consumers of a capability's lanes), ``{due}`` (the one of its scheduled tasks) and ``{type}``. A user without a list of
capabilities or types gets ``*`` there. What is not granted is denied: the server refuses it, and the bus makes that a
``PermissionDeniedError`` that names the subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from string import Formatter

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.errors import InvalidNameError

ANY = "*"
INBOX = "_INBOX"
"""Answers to a user go below ``_INBOX.<user>``: one rule lets a worker answer all, and each hears only its own."""

PEOPLE_TYPES = ("approval",)
"""Actor types that people talk to and programs do not: what decides about a program, it shall not mail to. Its
subjects are denied to every program's user but those that host the type."""


_LIMITS = tuple(f"cb.{way}.budget.*" for way in ("ask", "call", "mail", "tell"))
"""Budgets: who only gives work, or only does tasks, shall not raise its own limits. Hosts of agents ask them to pay."""


class Grant(Struct, frozen=True):
    """Subjects that may be used for one purpose.

    Attributes:
        what: What it is good for, as docs/security.md says it.
    """

    what: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


class Role(Struct, frozen=True, kw_only=True):
    """What all users of one kind may do.

    Attributes:
        about: Who it is for.
        deny: Subjects that may not be published although a grant matches them.
        is_person: Whether people stand behind it, who may decide about what programs ask.
    """

    name: str
    about: str
    grants: tuple[Grant, ...]
    deny: tuple[str, ...] = ()
    is_person: bool = False


class User(Struct, frozen=True, kw_only=True):
    """One login. Its processes share it.

    Attributes:
        capabilities: Those it may serve; empty for none, ``("*",)`` for all.
        types: Actor types it may host; likewise.
    """

    name: str
    role: str
    capabilities: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


class Permissions(Struct, frozen=True, kw_only=True):
    """What the server is told of a user."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()


def _gets(stream: str) -> tuple[str, ...]:
    """Return what it takes to get single messages of a stream."""
    names = ("STREAM.INFO.{}", "DIRECT.GET.{}", "DIRECT.GET.{}.>", "STREAM.MSG.GET.{}")
    return tuple("$JS.API." + name.format(stream) for name in names)


def _reads(stream: str) -> tuple[str, ...]:
    """Return what it takes to read a stream in order, by a consumer of our own that ends with us."""
    names = (
        "CONSUMER.CREATE.{}.*",
        "CONSUMER.CREATE.{}.*.>",
        "CONSUMER.MSG.NEXT.{}.*",
        "CONSUMER.INFO.{}.*",
        "CONSUMER.DELETE.{}.*",
    )
    return (*_gets(stream), *("$JS.API." + name.format(stream) for name in names))


_TASKS = ("cb.task.*", "cb.task.*.high", "cb.task.*.low")
_BLOBS = ("$O.CB_BLOBS.C.*", "$O.CB_BLOBS.M.*")

_CONNECT = Grant(
    "connect, and hear its own answers",
    ("$JS.API.INFO", "$SYS.REQ.USER.INFO"),
    (INBOX + ".{user}.>",),
)
_SUBMIT = Grant(
    "submit tasks, see whether a capability was ever offered, say which labels are asked for",
    (*_TASKS, "cb.ctl.pools", "$JS.API.STREAM.INFO.CB_WORK", "$JS.API.CONSUMER.INFO.CB_WORK.*"),
)
# The server obeys headers that no permission sees: who may write into a stream with schedules may delete all of it.
_HAND_IN = Grant("ask actors, and hand in mail for them", ("cb.ask.>", "cb.tell.*.*"))
_TALK = Grant("ask and tell actors, and say which turns led to it", ("cb.ask.>", "cb.call.*.*", "cb.mail.*.*"))
_PLAN = Grant("have the server hold tasks for later", ("cb.later.>",))
_LOOK_UP = Grant(
    "look agents and workers up, in the registry or in its records",
    ("cb.registry.find", "cb.registry.list", "$SRV.>", *_reads("KV_CB_REGISTRY")),
    (
        "cb.registry.changed",
        "cb.registry.beat",
        "cb.registry.beat.*",
        "cb.registry.served",
        "cb.beat.>",
        "cb.group.>",
    ),
)
_PICK = Grant(
    "have the registry choose an agent, and say when it has answered", ("cb.registry.pick", "cb.registry.served")
)
_STORE_BLOBS = Grant("store and get large payloads", (*_BLOBS, *_gets("OBJ_CB_BLOBS")))
_LIVE = Grant(
    "be a worker, or the parent of a group: beats, pings, orders, deaths, discovery",
    (
        "cb.beat.{user}.*",
        "cb.group.{user}.*",
        "cb.ping.>",
        "cb.ctl.holds",
        "cb.ctl.dead",
        "cb.ctl.freed",
        INBOX + ".>",
    ),
    (
        "cb.beat.>",
        "$SRV.>",
        "cb.ping.{user}.*",
        "cb.ctl.worker.{user}.*",
        "cb.ctl.holds",
        "cb.ctl.cancel",
        "cb.ctl.dead",
        "cb.ctl.freed",
    ),
)
_SETTINGS = Grant("read live settings", _reads("KV_CB_CONFIG"))


def _shares(*scopes: str) -> tuple[str, ...]:
    """Return what it takes to read and write parts of the shared context: keys are told apart by subject alone."""
    keys = tuple(f"$KV.CB_CONTEXT.{scope}.>" for scope in scopes)
    names = ("STREAM.INFO.{}", "CONSUMER.MSG.NEXT.{}.*", "CONSUMER.INFO.{}.*", "CONSUMER.DELETE.{}.*")
    return (
        *keys,
        *("$JS.API." + name.format("KV_CB_CONTEXT") for name in names),
        *(f"$JS.API.DIRECT.GET.KV_CB_CONTEXT.{key}" for key in keys),
        *(f"$JS.API.CONSUMER.CREATE.KV_CB_CONTEXT.*.{key}" for key in keys),
    )


_SHARE = Grant(
    "read and write the shared context, and what its own actor types keep there",
    _shares("global", "run", "private.{type}"),
)
_PULL = Grant(
    "pull tasks of its capabilities, and see where some wait",
    (
        "$JS.API.CONSUMER.LIST.CB_WORK",
        "$JS.API.CONSUMER.LIST.CB_LATER",
        "$JS.API.STREAM.INFO.CB_WORK",
        "$JS.API.STREAM.INFO.CB_LATER",
        "$JS.API.STREAM.INFO.CB_DEAD",
        "$JS.API.STREAM.INFO.CB_LEDGER",
        "$JS.API.CONSUMER.INFO.CB_WORK.{lane}",
        "$JS.API.CONSUMER.INFO.CB_LATER.{due}",
        "$JS.API.CONSUMER.MSG.NEXT.CB_WORK.{lane}",
        "$JS.API.CONSUMER.MSG.NEXT.CB_LATER.{due}",
        "$JS.ACK.CB_WORK.{lane}.>",
        "$JS.ACK.CB_LATER.{due}.>",
    ),
    ("cb.ctl.pools",),
)
_RECORD = Grant(
    "record how its tasks ended",
    (
        *_gets("CB_LEDGER"),
        "cb.result.{capability}.*",
        "cb.attempt.{capability}.*.*",
        "cb.dead.task.{capability}.*",
        "cb.event.task.*",
        "cb.token.>",
    ),
)
_HOST = Grant(
    "host its actor types",
    (
        "cb.state.{type}.>",
        "cb.step.{type}.>",
        "cb.event.{type}.>",
        "cb.timer.{type}.>",
        "cb.cursor.{type}.*",
        "cb.cursor.{type}.post.upto",
        *_reads("CB_POST"),
        "$JS.API.STREAM.PURGE.CB_POST",
        "cb.cursor.~audit.0",
        "cb.dead.mail.{type}.>",
        *_reads("CB_ACTORS"),
    ),
    ("cb.ask.{type}.*", "cb.call.{type}.*", "cb.ctl.actor.{type}.*", "cb.cursor.*.*", "cb.event.>", "cb.token.>"),
)
_TICKETS = Grant("keep tickets", ("cb.event.ticket.*",))
_SWEEP = Grant(
    "sweep what is handled behind the audit copy, mend that copy, and put dead mail back",
    (
        "$JS.API.STREAM.PURGE.CB_ACTORS",
        *_reads("CB_AUDIT"),
        *_reads("CB_AUDIT_GAPS"),
        "cb.gap.>",
        *_gets("CB_DEAD")[1:],
        "$JS.API.STREAM.MSG.DELETE.CB_DEAD",
    ),
)
_RESULTS = Grant(
    "fetch the result of a task whose name it knows",
    ("$JS.API.DIRECT.GET.CB_LEDGER.cb.result.>",),
)
_WATCH = Grant("follow the tokens of running models", _reads("CB_TOKENS"))
_ENTER = Grant("enter the agents of its actor types in the registry", ("$KV.CB_REGISTRY.agent.{type}.*",))
_DESK = Grant(
    "keep the registry: answer look-ups, enter agents of all types",
    ("$KV.CB_REGISTRY.agent.*.*", "cb.registry.changed"),
    ("cb.registry.*", "cb.registry.*.*"),
)
_SERVE = Grant(
    "register as agents of its types, say that they live, and answer asks to them",
    (
        "cb.registry.register.{type}",
        "cb.registry.deregister.{type}",
        "cb.registry.beat.{type}",
        INBOX + ".>",
    ),
    ("cb.ask.{type}.*",),
)
_AUDIT = Grant(
    "read every stored message, and change none",
    (
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        *chain.from_iterable(
            _reads(stream) for stream in ("CB_LEDGER", "CB_AUDIT", "CB_AUDIT_GAPS", "CB_ACTORS", "CB_DEAD")
        ),
        *_gets("OBJ_CB_BLOBS"),
    ),
    ("cb.beat.>",),
)
_DECIDE = Grant(
    "look at what agents ask of people, and decide it",
    ("cb.ask.approval.*", *_gets("CB_ACTORS")),
)
_OPERATE = Grant(
    "do anything inside its account but speak for a worker",
    ("cb.>", "$JS.API.>", "$JS.ACK.>", "$KV.>", "$O.>", "$SRV.>", INBOX + ".>"),
    ("cb.>",),
)

_BACK_UP = Grant("back streams up and restore them", ("$JS.SNAPSHOT.ACK.>", "$JS.SNAPSHOT.RESTORE.>"))
_REPLAY = Grant("send history again, onto subjects of their own", ("history.>", "shadow.>"), ("history.>", "shadow.>"))

# Of these roles nobody may write into a stream that holds the mail of others: their settings say so.
GUESTS = frozenset({"submitter", "worker", "agent"})

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role(
            name="submitter",
            about="a program that gives work: submits tasks, asks and tells actors, fetches results",
            grants=(_CONNECT, _SUBMIT, _HAND_IN, _LOOK_UP, _PICK, _RESULTS, _STORE_BLOBS),
            deny=_LIMITS,
        ),
        Role(
            name="worker",
            about="the workers of one pool: serve its capabilities",
            grants=(
                _CONNECT,
                _LIVE,
                _SETTINGS,
                _SHARE,
                _PULL,
                _RECORD,
                _SUBMIT,
                _PLAN,
                _HAND_IN,
                _LOOK_UP,
                _PICK,
                _STORE_BLOBS,
            ),
            deny=_LIMITS,
        ),
        Role(
            name="host",
            about="workers that host actors, and may serve capabilities too",
            grants=(
                _CONNECT,
                _LIVE,
                _SETTINGS,
                _SHARE,
                _PULL,
                _RECORD,
                _SUBMIT,
                _PLAN,
                _TALK,
                _LOOK_UP,
                _PICK,
                _STORE_BLOBS,
                _HOST,
                _TICKETS,
                _WATCH,
                _SWEEP,
                _ENTER,
            ),
        ),
        Role(
            name="agent",
            about="agents in any language that no worker hosts: they register, beat, and answer asks",
            grants=(_CONNECT, _HAND_IN, _LOOK_UP, _PICK, _SERVE),
            deny=_LIMITS,
        ),
        Role(
            name="registry",
            about="workers that host the registry and nothing else: `callboard worker start --registry`",
            grants=(_CONNECT, _LIVE, _SETTINGS, _PULL, _TALK, _LOOK_UP, _STORE_BLOBS, _HOST, _SWEEP, _DESK),
            deny=_LIMITS,
        ),
        Role(
            name="auditor",
            about="a person or program that reads the record and the dead letters",
            grants=(_CONNECT, _LOOK_UP, _WATCH, _AUDIT),
        ),
        Role(
            name="approver",
            about="a person who decides what agents ask for, and changes nothing else",
            grants=(_CONNECT, _DECIDE),
            is_person=True,
        ),
        Role(
            name="operator",
            about="a person who provisions, gives orders, repairs",
            grants=(_CONNECT, _OPERATE, _BACK_UP, _REPLAY),
            # results it may write: a waiting task is cancelled by one
            deny=("cb.beat.>", "cb.group.>", "cb.attempt.>", "cb.state.>", "cb.step.>", "cb.cursor.>"),
            is_person=True,
        ),
    )
}


def permissions(user: User) -> Permissions:
    """Return what the server shall allow ``user``, sorted and without repetitions.

    Raises:
        InvalidNameError: If its name, a capability or a type cannot be a subject token.
    """
    check(user)
    role = ROLES[user.role]
    return Permissions(
        publish=_filled(chain.from_iterable(grant.publish for grant in role.grants), user),
        subscribe=_filled(chain.from_iterable(grant.subscribe for grant in role.grants), user),
        deny_publish=_filled((*role.deny, *_guarded(role, user)), user),
    )


def inbox(user: str) -> str:
    """Return the inbox prefix of a user, as ``nats.inbox_prefix`` takes it."""
    return f"{INBOX}.{user}"


def markdown() -> str:
    """Return the table of all roles as docs/security.md shows it."""
    lines = []
    for role in ROLES.values():
        lines += [f"### `{role.name}`", "", f"{role.about[0].upper()}{role.about[1:]}.", ""]
        lines += ["| may | publish | hear |", "|---|---|---|"]
        lines += [f"| {grant.what} | {_cell(grant.publish)} | {_cell(grant.subscribe)} |" for grant in role.grants]
        guarded = _guarded(role, User(name="", role=role.name))
        if role.deny:
            lines += ["", f"Never: {_cell(role.deny)}."]
        if guarded:
            but = ", unless the user hosts that type" if any("{type}" in each for each in _published(role)) else ""
            lines += ["", f"Never: {_cell(guarded)}{but}."]
        lines.append("")
    return "\n".join(lines).rstrip()


def check(user: User) -> None:
    """Refuse names that are no subject tokens: one with a dot or a wildcard would widen what the table grants.

    Raises:
        InvalidNameError: If one is not usable, or the role does not exist.
    """
    subjects.check_name(user.name, what="user")
    if user.role not in ROLES:
        message = f"role {user.role!r} does not exist; there are {', '.join(ROLES)}"
        raise InvalidNameError(message, name=user.role)
    for what, names in (("capability", user.capabilities), ("actor type", user.types)):
        for name in names:
            if name != ANY:
                subjects.check_name(name, what=what)


def _guarded(role: Role, user: User) -> tuple[str, ...]:
    """Return the subjects of actors for people that a grant would open to this program."""
    if role.is_person:
        return ()
    hosted = set(PEOPLE_TYPES) if ANY in user.types else set(user.types) & set(PEOPLE_TYPES)
    talks = [subject for subject in _TALK.publish if subject in _published(role)]
    kinds = [kind for kind in PEOPLE_TYPES if kind not in hosted] if talks else []
    return tuple(f"cb.{way}.{kind}.*" for kind in kinds for way in ("ask", "call", "mail", "tell"))


def _published(role: Role) -> tuple[str, ...]:
    return tuple(chain.from_iterable(grant.publish for grant in role.grants))


def _cell(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _filled(patterns: Sequence[str] | Iterator[str], user: User) -> tuple[str, ...]:
    return tuple(sorted({subject for pattern in patterns for subject in _fill(pattern, user)}))


def _fill(pattern: str, user: User) -> Iterator[str]:
    field = next((name for _, name, _, _ in Formatter().parse(pattern) if name is not None), None)
    match field:
        case None:
            yield pattern
        case "user":
            yield pattern.format(user=user.name)
        case "type":
            yield from (pattern.format(type=each) for each in user.types)
        case "capability":
            yield from (pattern.format(capability=each) for each in user.capabilities)
        case "lane":
            for each in user.capabilities:
                names = [ANY] if each == ANY else [subjects.consumer(each, lane) for lane in subjects.LANES]
                yield from (pattern.format(lane=name) for name in names)
        case _:
            names = [ANY if each == ANY else subjects.due_consumer(each) for each in user.capabilities]
            yield from (pattern.format(due=name) for name in names)
