"""What the broker's numbers mean to a caller: above all whether to try again."""

from __future__ import annotations

import pytest

from callboard.runtime.bus.jetstream_wire import to_error
from callboard.runtime.errors import (
    ApiError,
    BackpressureError,
    BusError,
    BusTimeoutError,
    ConflictError,
    NotFoundError,
)


@pytest.mark.parametrize(
    ("err_code", "kind", "retryable"),
    [
        (10071, ConflictError, False),
        (10077, BackpressureError, True),
        (10059, NotFoundError, False),
        # a repeat under the same id, while the first copy is on its way through the replicas
        (10158, BusTimeoutError, True),
        (10025, ApiError, False),
    ],
)
def test_a_refusal_says_whether_to_try_again(err_code: int, kind: type[BusError], retryable: bool) -> None:
    error = to_error(400, err_code, "refused", what="cb.mail.a.b")
    assert (type(error), error.retryable) == (kind, retryable)
    assert str(err_code) in str(error)
