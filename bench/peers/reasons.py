"""Why a row of ours is behind in a measure, and what it would take: said once here, printed only where it is behind."""

from __future__ import annotations

from msgspec import Struct


class Reason(Struct, frozen=True, kw_only=True):
    """Why we are behind, and what it would take not to be."""

    why: str
    cost: str


# By key of the measure.
REASONS = {
    "rate": Reason(
        why="A task of ours is kept by a lease, and its record is stored before its message is taken off the queue; "
        "with every write synced, the broker syncs each taking-off by itself.",
        cost="Less Python a task, or a broker that syncs what it takes off in groups.",
    ),
    "handler_p50": Reason(
        why="Between the broker and the handler stand the claim, its lease and the decoding to the handler's types.",
        cost="Native code for that path.",
    ),
    "handler_p99": Reason(
        why="As at the median, and the worker's beats, metrics and lease keeper share its cores.",
        cost="Less work beside the tasks, or cores that nobody shares.",
    ),
    "result_p50": Reason(
        why="Our result is a record that the broker holds before the submitter hears of it: two stores one after the "
        "other, the submit and the record. A result in memory or a plain reply needs fewer.",
        cost="A notice before the record is stored, which would say what a crash can still take back.",
    ),
    "result_p99": Reason(
        why="As at the median; and a record may wait for the group that it is committed with.",
        cost="The same, or a group each, at the price of fewer tasks a second.",
    ),
    "cpu": Reason(
        why="A task of ours pays for its lease, its record, metrics and typed decoding; a bare consumer has none.",
        cost="Native code for records and settlement.",
    ),
    "memory": Reason(
        why="A worker of ours carries actors, the registry, health and metrics, whether a module asks for them or not.",
        cost="Loading those parts only when they are asked for.",
    ),
    "startup": Reason(
        why="A worker of ours loads those parts too, and makes sure of its streams and consumers before it claims.",
        cost="Lighter imports, and claiming while the rest still starts.",
    ),
    "submit": Reason(
        why="A sender of ours waits until the broker has stored each batch before it sends the next.",
        cost="Several batches under way at once.",
    ),
    "recovery": Reason(
        why="A lease of 4 s has to run out, and 0.75 s go to asking who holds the task: the slow are not the dead.",
        cost="A shorter lease, at the price of second runs on busy machines, or somebody who reports the death.",
    ),
}
