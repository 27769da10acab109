"""The catalogue of log events: every name Callboard logs under, ``callboard.v1.<noun>.<past verb>``.

A name is an interface: people filter and alert on it, so it is never reused for something else. The comment beside each
names its usual fields. Levels: debug per message, info for life cycle, warning for handled but odd, error when a person
should look.
"""

from __future__ import annotations

from typing import Final

# --- worker ------------------------------------------------------------------------------------------------------

WORKER_READIED: Final = "callboard.v1.worker.readied"  # info: worker, capabilities; fetched for the first time
WORKER_DRAIN_BEGUN: Final = "callboard.v1.worker.drain_begun"  # info: worker, now, shutdown
WORKER_WORN: Final = "callboard.v1.worker.worn"  # info: worker, why; another process takes its place
WORKER_STOPPED: Final = "callboard.v1.worker.stopped"  # info: worker, exit_code
WORKER_FAILED: Final = "callboard.v1.worker.failed"  # error: worker, code, message
TENANT_UNSERVED: Final = "callboard.v1.tenant.unserved"  # warning: tenant, code, message; tried again
BEAT_FORGED: Final = "callboard.v1.beat.forged"  # warning: subject, worker; it speaks for another, and is dropped

# --- what the broker holds ----------------------------------------------------------------------------------------

STREAM_FILLED_UP: Final = "callboard.v1.stream.filled_up"  # warning: stream, bytes_left, hours_left, then; room is low
SURVEY_FAILED: Final = "callboard.v1.survey.failed"  # warning: code; metrics of the broker get old, once until it works

# --- process -----------------------------------------------------------------------------------------------------

SERVER_ENDED: Final = "callboard.v1.server.ended"  # warning: server, pid, status, delay_s (None: left as it is)
SERVER_STARTED: Final = "callboard.v1.server.started"  # info: server, pid
SERVER_UNSTARTED: Final = "callboard.v1.server.unstarted"  # warning: server, code, message; tried again
PROCESS_STARTED: Final = "callboard.v1.process.started"  # info: slot, pid
PROCESS_RESTARTED: Final = "callboard.v1.process.restarted"  # warning: slot, restarts, delay_s, status
PROCESS_ABANDONED: Final = "callboard.v1.process.abandoned"  # error: slot, restarts, window_s
PROCESS_KILLED: Final = "callboard.v1.process.killed"  # warning: slot, pid
PROCESS_RETIRED: Final = "callboard.v1.process.retired"  # info: slot, pid; it finishes what it runs and ends
PROCESS_RECYCLED: Final = "callboard.v1.process.recycled"  # info: slot, pid; it is worn, another takes its place
PROCESS_UNREPORTED: Final = (
    "callboard.v1.process.unreported"  # warning: pid, message; a death others see a second later
)

GROUP_SCALED: Final = "callboard.v1.group.scaled"  # info: group, processes, was, why
GROUP_BLINDED: Final = "callboard.v1.group.blinded"  # warning: group, code, message; it stays as it is meanwhile

# --- task --------------------------------------------------------------------------------------------------------

TASK_RETRIED: Final = "callboard.v1.task.retried"  # info: task, capability, attempt, code, type, delay_s
TASK_DEAD_LETTERED: Final = "callboard.v1.task.dead_lettered"  # error: task, capability, attempts, crashes, code, type
TASK_EXPIRED: Final = "callboard.v1.task.expired"  # info: task, capability, was_running
TASK_CANCELLED: Final = "callboard.v1.task.cancelled"  # info: task, capability, was_running
TASK_DROPPED: Final = "callboard.v1.task.dropped"  # info: task, capability; another worker may hold it
TASK_SKIPPED: Final = "callboard.v1.task.skipped"  # debug: task, capability; its record exists
TASK_HANDED_BACK: Final = "callboard.v1.task.handed_back"  # info: task, capability; stopped by a drain while it ran
TASK_TAKEN_OVER: Final = "callboard.v1.task.taken_over"  # warning: task, capability, attempt, crashes
TASK_UNMATCHED: Final = "callboard.v1.task.unmatched"  # warning: capability, waiting; no worker bears its labels
TASK_UNCOMMITTED: Final = "callboard.v1.task.uncommitted"  # error: task, capability, code, message; it comes again

POOL_REFUSED: Final = "callboard.v1.pool.refused"  # warning: capability, code, message; its consumers are not ours
POOL_UNSEEN: Final = "callboard.v1.pool.unseen"  # debug: code; pools by label are looked for again

# --- lease -------------------------------------------------------------------------------------------------------

LEASE_EXTENDED_LATE: Final = "callboard.v1.lease.extended_late"  # warning: tasks, silent_s
LEASE_LAPSED: Final = "callboard.v1.lease.lapsed"  # warning: task, capability; another worker may run it now
LEASE_RELEASED: Final = "callboard.v1.lease.released"  # error: tasks, blocked_s; loop dead for max_block_s

# --- actor -------------------------------------------------------------------------------------------------------

ACTOR_FAILED: Final = "callboard.v1.actor.failed"  # error: actor, code, message; its mail waits for a person
TURN_FAILED: Final = "callboard.v1.turn.failed"  # warning: actor, seq, attempt, code, type
TURN_FENCED: Final = "callboard.v1.turn.fenced"  # warning: actor, epoch; another host wrote since, thrown away
TURN_CANCELLED: Final = "callboard.v1.turn.cancelled"  # info: actor, seq, reason
TURN_RESUMED: Final = "callboard.v1.turn.resumed"  # warning: actor, seq, how, cause, from_worker, steps
TURN_INTERRUPTED: Final = "callboard.v1.turn.interrupted"  # info: actor, seq, reason, steps; another host goes on
TURN_UNNOTED: Final = "callboard.v1.turn.unnoted"  # warning: actor, event_name, code; an event of it was not stored
HANDLER_ABANDONED: Final = "callboard.v1.handler.abandoned"  # error: actor, seq; it swallows every cancellation
MAIL_DEAD_LETTERED: Final = "callboard.v1.mail.dead_lettered"  # error: actor, seq, attempts, code
POST_UNREAD: Final = "callboard.v1.post.unread"  # warning: type, code, message; mail that was handed in waits
MAIL_REFUSED: Final = "callboard.v1.mail.refused"  # warning: actor, mails, policy, problem; the mailbox is full
REPLY_REFUSED: Final = "callboard.v1.reply.refused"  # warning: subject; an answer was wanted where only workers write
HOOK_FAILED: Final = "callboard.v1.hook.failed"  # warning: actor, hook, type
ACTOR_TRIM_HELD: Final = "callboard.v1.actor.trim_held"  # warning: message; nothing is swept while this stands
AUDIT_REPAIRED: Final = "callboard.v1.audit.repaired"  # warning: messages, first; copies lost by a server, made anew
# warning: type, version, worker, fingerprint, other_worker, other_fingerprint; the same version with other code
CODE_DIFFERED: Final = "callboard.v1.code.differed"
PARTITION_TAKEN: Final = "callboard.v1.partition.taken"  # info: type, partition, epoch, from_worker, is_from_dead
PARTITION_HANDED_OVER: Final = "callboard.v1.partition.handed_over"  # info: type, partition, epoch, to, held
PARTITION_LOST: Final = "callboard.v1.partition.lost"  # warning: type, partition, epoch
PARTITION_UNSWEPT: Final = "callboard.v1.partition.unswept"  # debug: type, partition, code; tried again
PARTITION_UNPLACED: Final = "callboard.v1.partition.unplaced"  # debug: code, message; tried again

# --- registry ----------------------------------------------------------------------------------------------------

REGISTRY_LED: Final = "callboard.v1.registry.led"  # info: agents; this worker answers look-ups from now on
CONTEXT_UNSWEPT: Final = "callboard.v1.context.unswept"  # warning: scope, code, message; what is over stays for now
REGISTRY_UNHOSTED: Final = "callboard.v1.registry.unhosted"  # warning: worker, message; look-ups go to other workers
REGISTRY_DUPLICATED: Final = "callboard.v1.registry.duplicated"  # error: actor, code, holder; two claim one address
REGISTRY_FAILED: Final = "callboard.v1.registry.failed"  # error: subject, code; the asker is told
REGISTRY_UNWRITTEN: Final = "callboard.v1.registry.unwritten"  # debug: actor, code; tried again

# --- agents ------------------------------------------------------------------------------------------------------

# warning: step, code, message; watchers of a call's tokens get its text when it is finished
TOKENS_GIVEN_UP: Final = "callboard.v1.tokens.given_up"

# --- bus ---------------------------------------------------------------------------------------------------------

BUS_CONNECTED: Final = "callboard.v1.bus.connected"  # info: server, version
BUS_WAITED: Final = "callboard.v1.bus.waited"  # info: server, code, message; connected, and no leader answers yet
BUS_DISCONNECTED: Final = "callboard.v1.bus.disconnected"  # warning: server
BUS_RECONNECTED: Final = "callboard.v1.bus.reconnected"  # info: server, away_s
BUS_DEAFENED: Final = "callboard.v1.bus.deafened"  # warning: consumer, silent_s; pulled again
BUS_RECONNECT_FORCED: Final = "callboard.v1.bus.reconnect_forced"  # warning: server, silent_s, to ("": any other)
BUS_REPULLED: Final = "callboard.v1.bus.repulled"  # debug: consumer, status
BUS_REFUSED: Final = "callboard.v1.bus.refused"  # error: subject; by the broker's permissions
BUS_FAILED: Final = "callboard.v1.bus.failed"  # warning: code, message; an error the client library reported
BUS_CLOSED: Final = "callboard.v1.bus.closed"  # debug: server

# --- edges -------------------------------------------------------------------------------------------------------

HEALTH_SERVED: Final = "callboard.v1.health.served"  # info: host, port
HEALTH_FAILED: Final = "callboard.v1.health.failed"  # error: check, code; a check itself broke
LOG_WITHHELD: Final = "callboard.v1.log.withheld"  # stands in for an event that could not be redacted or rendered

# --- agents ------------------------------------------------------------------------------------------------------

MODEL_DEFAULTED: Final = "callboard.v1.model.defaulted"  # warning: model, message; none is configured, once a process

CATALOGUE: Final[frozenset[str]] = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
)
