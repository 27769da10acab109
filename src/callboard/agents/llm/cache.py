"""Answers kept for equal questions, in the memory of one process; equal questions at one time share one request.

Nothing is stored outside of the process: what is asked and answered may be secret, and a turn that runs again has its
answer in the journal anyway.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from decimal import Decimal

import msgspec
from msgspec import Struct

from callboard.agents.llm import notes
from callboard.agents.llm.around import Around
from callboard.agents.llm.base import Completion, Delta, Model, Prompt, Usage, fingerprint
from callboard.runtime.clock import SYSTEM_CLOCK, Clock

DEFAULT_TTL_S = 3600.0
DEFAULT_ENTRIES = 1000
_bypassed: contextvars.ContextVar[bool] = contextvars.ContextVar("callboard_cache_bypassed", default=False)


class _Kept(Struct, frozen=True):
    value: Completion
    until_s: float


class Cached(Around):
    """A model with a cache before it; what is in the cache costs nothing.

    The key is exact: the model's name and the whole prompt. A cached answer has no usage and costs nothing, and the
    call's record says ``is_cached``. Answers that were cut off or refused are not kept. Give each tenant an object of
    its own, or ``tenant``.
    """

    def __init__(
        self,
        model: Model,
        *,
        tenant: str = "",
        ttl_s: float = DEFAULT_TTL_S,
        entries: int = DEFAULT_ENTRIES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Put a cache before ``model``.

        Args:
            model: Asked for what is not there.
            tenant: Part of the key: tenants never see each other's answers.
            ttl_s: How long an answer is kept, in seconds.
            entries: How many are kept; the one that was not used for longest goes first.
            clock: Time.
        """
        super().__init__(model)
        self._tenant = tenant
        self._ttl_s = ttl_s
        self._entries = entries
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._running: dict[str, asyncio.Future[Completion | None]] = {}

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        """See ``Model``.

        Raises:
            ModelError: As its model. Each of those who shared a failed request asks for itself.
        """
        if _bypassed.get():
            return await super().complete(prompt, timeout_s=timeout_s, key=key)
        place = self._place(prompt)
        found = await self._found(place)
        if found is not None:
            return found
        with self._flight(place) as landed:
            answer = await super().complete(prompt, timeout_s=timeout_s, key=key)
            self._keep(place, answer)
            landed.append(answer)
            return answer

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncGenerator[Delta | Completion, None]:
        """See ``Model``. An answer from the cache comes in one piece.

        Raises:
            ModelError: As its model.
        """
        if _bypassed.get():
            async with aclosing(super().stream(prompt, timeout_s=timeout_s, key=key)) as parts:
                async for part in parts:
                    yield part
            return
        place = self._place(prompt)
        found = await self._found(place)
        if found is not None:
            if found.text:
                yield Delta(text=found.text)
            yield found
            return
        with self._flight(place) as landed:
            async with aclosing(super().stream(prompt, timeout_s=timeout_s, key=key)) as parts:
                async for part in parts:
                    if isinstance(part, Completion):
                        self._keep(place, part)
                        landed.append(part)
                    yield part

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See ``Model``. Equal texts are sent once, all in one request; vectors are not kept."""
        single = list(dict.fromkeys(texts))
        vectors = dict(zip(single, await super().embed(single), strict=True)) if single else {}
        return [vectors[text] for text in texts]

    async def close(self) -> None:
        """Close its model and forget all answers."""
        self._kept.clear()
        await super().close()

    # --- inside

    def _place(self, prompt: Prompt) -> str:
        # the version names the text for people; two versions with one text are one question
        plain = msgspec.structs.replace(prompt, version="")
        return f"{self._tenant}\0{fingerprint(plain, model=self._model.name)}"

    async def _found(self, place: str) -> Completion | None:
        """Return what is kept, or what another call brings that asks right now; None for who is to ask."""
        while True:
            kept = self._kept.get(place)
            if kept is not None and kept.until_s > self._clock.monotonic():
                self._kept.move_to_end(place)
                return _free(kept.value)
            running = self._running.get(place)
            if running is None:
                return None
            # None: it failed, or went away. The first of those who waited asks now.
            shared = await asyncio.shield(running)
            if shared is not None:
                return _free(shared)

    @contextmanager
    def _flight(self, place: str) -> Iterator[list[Completion]]:
        """Have others with the same question wait; they get what is put into the list, or ask themselves."""
        future: asyncio.Future[Completion | None] = asyncio.get_running_loop().create_future()
        self._running[place] = future
        landed: list[Completion] = []
        try:
            yield landed
        finally:
            del self._running[place]
            if not future.done():
                future.set_result(landed[0] if landed else None)

    def _keep(self, place: str, answer: Completion) -> None:
        if answer.finish not in ("stop", "tool_calls"):
            return
        self._kept[place] = _Kept(answer, self._clock.monotonic() + self._ttl_s)
        self._kept.move_to_end(place)
        while len(self._kept) > self._entries:
            _ = self._kept.popitem(last=False)


@contextmanager
def bypassed() -> Iterator[None]:
    """Ask the model itself inside the block, and keep nothing of what it says."""
    token = _bypassed.set(True)
    try:
        yield
    finally:
        _bypassed.reset(token)


def _free(answer: Completion) -> Completion:
    notes.cached()
    return msgspec.structs.replace(answer, usage=Usage(), cost_usd=Decimal(0), retries=0)
