"""The catalogue of log events: every name Callboard logs under, ``callboard.v1.<noun>.<past verb>``.

A name is an interface: people filter and alert on it, so it is never reused for something else. The comment beside each
names its usual fields. Levels: debug per message, info for life cycle, warning for handled but odd, error when a person
should look.
"""

from __future__ import annotations

from typing import Final

# --- worker ------------------------------------------------------------------------------------------------------

WORKER_STARTED: Final = "callboard.v1.worker.started"  # info: worker, version, capabilities, slots
WORKER_READIED: Final = "callboard.v1.worker.readied"  # info: worker, after_s; fetched for the first time
WORKER_UNREADIED: Final = "callboard.v1.worker.unreadied"  # warning: worker, reasons; was ready and is not any more
WORKER_DRAIN_BEGUN: Final = "callboard.v1.worker.drain_begun"  # info: worker, running, grace_s
WORKER_DRAINED: Final = "callboard.v1.worker.drained"  # info: worker, finished, handed_back, took_s
WORKER_STOPPED: Final = "callboard.v1.worker.stopped"  # info: worker, exit_code
WORKER_BLOCKED: Final = "callboard.v1.worker.blocked"  # warning: worker, blocked_s; the event loop did not turn
WORKER_FAILED: Final = "callboard.v1.worker.failed"  # error: worker, code, message
WORKER_ORDERED: Final = "callboard.v1.worker.ordered"  # info: worker, order; drain or slots, by cb.ctl
BEAT_MISSED: Final = "callboard.v1.beat.missed"  # warning: worker, silent_s

# --- process -----------------------------------------------------------------------------------------------------

PROCESS_STARTED: Final = "callboard.v1.process.started"  # info: slot, pid
PROCESS_EXITED: Final = "callboard.v1.process.exited"  # warning unless asked for: slot, pid, exit_code, signal
PROCESS_RESTARTED: Final = "callboard.v1.process.restarted"  # warning: slot, pid, restarts, delay_s
PROCESS_RECYCLED: Final = "callboard.v1.process.recycled"  # info: slot, pid, reason
PROCESS_ABANDONED: Final = "callboard.v1.process.abandoned"  # error: slot, restarts, window_s
PROCESS_KILLED: Final = "callboard.v1.process.killed"  # warning: slot, pid, after_s

# --- task --------------------------------------------------------------------------------------------------------

TASK_SUBMITTED: Final = "callboard.v1.task.submitted"  # debug: task, capability, seq
TASK_CLAIMED: Final = "callboard.v1.task.claimed"  # debug: task, capability, lane, attempt, delivered
TASK_COMPLETED: Final = "callboard.v1.task.completed"  # debug: task, capability, took_s
TASK_FAILED: Final = "callboard.v1.task.failed"  # warning: task, capability, attempt, code
TASK_RETRIED: Final = "callboard.v1.task.retried"  # info: task, capability, attempt, code, delay_s
TASK_DEAD_LETTERED: Final = "callboard.v1.task.dead_lettered"  # error: task, capability, attempts, crashes, code
TASK_EXPIRED: Final = "callboard.v1.task.expired"  # info: task, capability, deadline, was_running
TASK_CANCELLED: Final = "callboard.v1.task.cancelled"  # info: task, capability, reason, was_running
TASK_DROPPED: Final = "callboard.v1.task.dropped"  # info: task, capability, holder; another worker holds it
TASK_SKIPPED: Final = "callboard.v1.task.skipped"  # info: task, capability; its record exists
TASK_HANDED_BACK: Final = "callboard.v1.task.handed_back"  # info: task, capability, reason
TASK_REDELIVERED: Final = "callboard.v1.task.redelivered"  # info: task, capability, delivered
TASK_UNCOMMITTED: Final = "callboard.v1.task.uncommitted"  # warning: task, capability, code; the record is tried again
TASK_TIMED_OUT: Final = "callboard.v1.task.timed_out"  # warning: task, capability, timeout_s
TASK_UNNOTICED: Final = "callboard.v1.task.unnoticed"  # debug: task, code; the notice could not be sent
DEAD_LETTER_REQUEUED: Final = "callboard.v1.dead_letter.requeued"  # info: task, capability, new_task
DEAD_LETTER_DISCARDED: Final = "callboard.v1.dead_letter.discarded"  # info: task, capability
SCHEDULE_SET: Final = "callboard.v1.schedule.set"  # info: task, capability, rule
SCHEDULE_CANCELLED: Final = "callboard.v1.schedule.cancelled"  # info: task

# --- lease -------------------------------------------------------------------------------------------------------

LEASE_EXTENDED_LATE: Final = "callboard.v1.lease.extended_late"  # warning: tasks, late_s
LEASE_LAPSED: Final = "callboard.v1.lease.lapsed"  # error: task, silent_s; another worker may run it now
LEASE_RELEASED: Final = "callboard.v1.lease.released"  # warning: tasks, blocked_s; loop dead for max_block_s
KEEPER_STARTED: Final = "callboard.v1.keeper.started"  # debug: worker
KEEPER_FAILED: Final = "callboard.v1.keeper.failed"  # error: worker, code

# --- bus ---------------------------------------------------------------------------------------------------------

BUS_CONNECTED: Final = "callboard.v1.bus.connected"  # info: server, version
BUS_DISCONNECTED: Final = "callboard.v1.bus.disconnected"  # warning: server
BUS_RECONNECTED: Final = "callboard.v1.bus.reconnected"  # info: server, away_s
BUS_DEAFENED: Final = "callboard.v1.bus.deafened"  # warning: consumer, silent_s; pulled again
BUS_RECONNECT_FORCED: Final = "callboard.v1.bus.reconnect_forced"  # warning: server, silent_s
BUS_REPULLED: Final = "callboard.v1.bus.repulled"  # debug: consumer, status
BUS_REFUSED: Final = "callboard.v1.bus.refused"  # error: subject; by the broker's permissions
BUS_FAILED: Final = "callboard.v1.bus.failed"  # warning: code, message; an error the client library reported
BUS_CLOSED: Final = "callboard.v1.bus.closed"  # debug: server

# --- topology, server, store -------------------------------------------------------------------------------------

PROVISION_APPLIED: Final = "callboard.v1.provision.applied"  # info: created, updated, unchanged
PROVISION_DRIFTED: Final = "callboard.v1.provision.drifted"  # warning: stream, setting, wanted, found
STREAM_FILLED: Final = "callboard.v1.stream.filled"  # warning: stream, used, limit
CONSUMER_CREATED: Final = "callboard.v1.consumer.created"  # info: stream, consumer
SERVER_STARTED: Final = "callboard.v1.server.started"  # info: version, port, pid, folder
SERVER_STOPPED: Final = "callboard.v1.server.stopped"  # info: pid, exit_code
SERVER_DIED: Final = "callboard.v1.server.died"  # error: pid, exit_code
COMMIT_REFUSED: Final = "callboard.v1.commit.refused"  # info: records, stale; a batch lost a compare-and-set
COMMIT_DELAYED: Final = "callboard.v1.commit.delayed"  # warning: waiting, code, delay_s
BLOB_STORED: Final = "callboard.v1.blob.stored"  # debug: name, size_bytes

# --- edges -------------------------------------------------------------------------------------------------------

HEALTH_SERVED: Final = "callboard.v1.health.served"  # info: host, port
HEALTH_FAILED: Final = "callboard.v1.health.failed"  # error: check, code; a check itself broke
MODULE_LOADED: Final = "callboard.v1.module.loaded"  # info: module, capabilities
MODULE_FAILED: Final = "callboard.v1.module.failed"  # error: module, code, message
CONFIG_LOADED: Final = "callboard.v1.config.loaded"  # debug: files
LOG_WITHHELD: Final = "callboard.v1.log.withheld"  # stands in for an event that could not be redacted or rendered

CATALOGUE: Final[frozenset[str]] = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)
