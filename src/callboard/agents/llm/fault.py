"""What a provider's refusal means: one error of ours for each, without the key in it. No request is made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from callboard.agents.errors import (
    ContextTooLongError,
    ModelAuthError,
    ModelError,
    ModelRateError,
    ModelRefusedError,
    ModelRequestError,
    ModelSetupError,
    ModelTimeoutError,
    ModelTransientError,
    ModelUnknownError,
)
from callboard.runtime.redact import REDACTED, redact_text

MAX_SAID_CHARS = 300
_TOO_LONG = re.compile(
    r"context.?(?:length|window|size)|maximum context|too many (?:input )?tokens|(?:prompt|input) is too long"
    r"|exceeds? the (?:model|available)|string_above_max_length",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"content.?(?:filter|policy|management)|safety|moderation|flagged", re.IGNORECASE)
_NO_MODEL = re.compile(
    r"model.?not.?found|(?:no such|unknown|invalid) model|model .{0,120}does not exist", re.IGNORECASE
)
_NO_MONEY = re.compile(r"insufficient.?(?:quota|balance|funds|credit)|billing|payment", re.IGNORECASE)


class Said(msgspec.Struct, frozen=True):
    """What a provider says about a refusal: its code and kind, and a text for people."""

    text: str
    code: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.code)


def of_status(
    status: int, body: bytes, *, model: str, secrets: Iterable[str] = (), retry_after_s: float | None = None
) -> ModelError:
    """Return the error that a refused request stands for.

    Args:
        status: HTTP status, 300 or higher.
        body: What came with it, as far as it was read.
        model: ``provider/model``.
        secrets: Texts that must not appear, such as the key.
        retry_after_s: As ``retry_after`` read it.
    """
    heard = said(body, secrets=secrets)
    provider = model.partition("/")[0]
    if status in {401, 403} and not _FILTERED.search(heard.code):
        hint = f"check agents.providers.{provider}.api_key, and that it may use this model"
        return ModelAuthError(_line(model, "refused the key", heard, hint), model=model, status=status)
    found = of_words(heard, model=model, status=status)
    if found is not None:
        return found
    what = "does not know this model, or base_url is not right"
    match status:
        case 404:
            hint = f"check the name and agents.providers.{provider}.base_url"
            return ModelUnknownError(_line(model, what, heard, hint), model=model, status=status)
        case 402 | 429:
            return _rate(heard, model=model, status=status, retry_after_s=retry_after_s)
        case 408 | 504:
            error: type[ModelError] = ModelTimeoutError
            what = "took too long"
        case 413:
            error, what = ContextTooLongError, "says that the request is too large; shorten the prompt"
        case 409 | 425:
            error, what = ModelTransientError, "could not answer just now"
        case _ if status >= 500:  # noqa: PLR2004 - server errors
            error, what = ModelTransientError, "failed"
        case _ if status < 400:  # noqa: PLR2004 - redirects, which would take the key along
            error, what = (
                ModelSetupError,
                f"redirects elsewhere; set agents.providers.{provider}.base_url to that address",
            )
        case _:
            error, what = ModelRequestError, "says that the request is wrong"
    return error(_line(model, what, heard, f"HTTP {status}"), model=model, status=status, retry_after_s=retry_after_s)


def of_words(heard: Said, *, model: str, status: int) -> ModelError | None:
    """Return the error that a refusal's own words stand for, whatever its status, or None."""
    if status >= 500 or status == 429:  # noqa: PLR2004 - those words may come by chance
        return None
    words = f"{heard.code} {heard.text}"
    if _TOO_LONG.search(words):
        line = _line(model, "has no room for this prompt", heard, "shorten it, or take a model with a larger window")
        return ContextTooLongError(line, model=model, status=status)
    if _FILTERED.search(words):
        return ModelRefusedError(_line(model, "refused to answer", heard, ""), model=model, status=status)
    if _NO_MODEL.search(words):
        return ModelUnknownError(
            _line(model, "is not known there", heard, "check the name"), model=model, status=status
        )
    return None


def of_event(error: object, *, model: str, secrets: Iterable[str] = ()) -> ModelError:
    """Return the error that an ``error`` in the middle of a stream, or in an answer with status 200, stands for."""
    heard = _said({"error": error}, secrets=secrets)
    found = of_words(heard, model=model, status=200)
    if found is not None:
        return found
    if "rate" in heard.code or "quota" in heard.code:
        return _rate(heard, model=model, status=200, retry_after_s=None)
    return ModelTransientError(_line(model, "broke off with an error", heard, ""), model=model, status=200)


def is_spent(error: ModelError) -> bool:
    """Return whether the account has no money left: waiting for seconds does not help."""
    return isinstance(error, ModelRateError) and (error.status == 402 or bool(_NO_MONEY.search(str(error))))  # noqa: PLR2004


def retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Return the seconds that a provider asks for: ``retry-after-ms``, else ``Retry-After`` in seconds or as a date.

    What cannot be read counts as not said; a date that has passed is 0.
    """
    try:
        if "retry-after-ms" in headers:
            return _sane(float(headers["retry-after-ms"]) / 1000)
        return _sane(float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (ValueError, KeyError, OverflowError):
        return None
    return _sane(((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


def said(body: bytes, *, secrets: Iterable[str] = ()) -> Said:
    """Return what the body of a refusal says, short and without secrets; of HTML, that it is HTML."""
    try:
        return _said(msgspec.json.decode(body), secrets=secrets)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # cleaned before it is cut: half a key is a piece of a secret as well
        text = body.decode(errors="replace").strip()
    if text[:1] == "<":
        return Said("it sent a web page, not an answer")
    return Said(clean(text, secrets=secrets))


def clean(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Return a provider's text on one line, cut, without secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, REDACTED)
    return redact_text(" ".join(text.split()))[:MAX_SAID_CHARS]


def _said(document: Any, *, secrets: Iterable[str]) -> Said:  # noqa: ANN401 - any JSON
    found = document
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict):
        found = next((found[key] for key in ("error", "detail", "message") if found.get(key)), "")
    if isinstance(found, dict):
        code = " ".join(str(found[key]) for key in ("code", "type") if found.get(key))
        text = found.get("message") or ""
        return Said(clean(str(text), secrets=secrets), clean(code, secrets=secrets))
    return Said(clean(found if isinstance(found, str) else str(found or ""), secrets=secrets))


def _rate(heard: Said, *, model: str, status: int, retry_after_s: float | None) -> ModelRateError:
    if status == 402 or _NO_MONEY.search(f"{heard.code} {heard.text}"):  # noqa: PLR2004 - payment required
        line = _line(
            model, "has no money left for this account (insufficient quota)", heard, "pay, or take another key"
        )
    else:
        pause = f"it asks to wait {retry_after_s:g} s" if retry_after_s is not None else ""
        line = _line(model, "takes no more calls for now", heard, pause)
    return ModelRateError(line, model=model, status=status, retry_after_s=retry_after_s)


def _line(model: str, what: str, heard: Said, hint: str) -> str:
    told = f": {heard.text or heard.code}" if heard else ""
    return f"{model} {what}{told}" + (f" ({hint})" if hint else "")


def _sane(seconds: float) -> float | None:
    return None if math.isnan(seconds) else min(max(0.0, seconds), 86_400.0)
