"""A worker that has loaded everything does not look through it again and again."""

from __future__ import annotations

import gc

from callboard.runtime.host import GC_EVERY_OBJECTS, settle_memory


def test_a_ready_worker_leaves_what_it_loaded_out_of_collections_and_still_collects() -> None:
    before = gc.get_threshold()
    try:
        settle_memory()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == GC_EVERY_OBJECTS
        assert gc.isenabled()
        # what is forgotten in circles must not pile up: an actor that is let go of is one of some 25 objects
        first, second, third = gc.get_threshold()
        assert first * (second + 1) * (third + 1) <= 100_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
