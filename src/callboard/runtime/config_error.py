"""Says in one line each what is wrong with which setting, where it was set, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from callboard.runtime.config_source import Values
from callboard.runtime.near import hint, near

# Less alike, the key of another section is the better guess.
_ALIKE = 0.6
_LIMITS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
}
_TYPES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "path_type": "must be a path",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of settings",
    "model_attributes_type": "must be a mapping of settings",
}


def explain(
    error: ValidationError, *, values: Values, known: Iterable[str], secrets: Iterable[str], section: str = ""
) -> str:
    """Return one line per problem: ``source: key: what is wrong``. Never shows a secret's value.

    ``section`` stands before every key, where only the inside of one section was checked.
    """
    keys = list(known)
    lines = [
        _line(detail, values=values, known=keys, secrets=set(secrets), section=section)
        for detail in error.errors(include_url=False)
    ]
    return "\n".join(lines)


def _line(detail: ErrorDetails, *, values: Values, known: list[str], secrets: set[str], section: str) -> str:
    context = detail.get("ctx", {})
    key = ".".join(str(part) for part in ((section, *detail["loc"]) if section else detail["loc"]))
    if detail["type"] == "cross":
        around = key
        key = f"{around}.{context['key']}"
        # The missing half of a pair was set nowhere: blame whoever set the section.
        origin = _origin(key, values) or _origin(around, values) or "default"
        return f"{origin}: {key}: {context['reason']}"
    origin = _origin(key, values) or "default"
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {key}: {_unknown(key, known)}"
    return f"{origin}: {key}: {_reason(detail, context)}{_given(detail, is_secret=key in secrets)}"


def _origin(key: str, values: Values) -> str:
    if key in values:
        return values[key].origin
    below = [value.origin for other, value in values.items() if other.startswith(f"{key}.")]
    if below:
        return below[-1]
    # an entry of a list, or a key itself: whoever set what it stands in
    around, _, _ = key.rpartition(".")
    return _origin(around, values) if "." in around else ""


def _unknown(key: str, known: list[str]) -> str:
    section, _, name = key.rpartition(".")
    sections = sorted({other.partition(".")[0] for other in known})
    if not section:
        listed = f"; sections are {', '.join(sections)}"
        return f"unknown section{hint(key, sections) or listed}"
    siblings = [
        other.removeprefix(f"{section}.").partition(".")[0] for other in known if other.startswith(f"{section}.")
    ]
    meant = near(name, siblings, count=1, cutoff=_ALIKE)
    if meant:
        return f"unknown key; did you mean {section}.{meant[0]}?"
    elsewhere = [other for other in known if other.endswith(f".{name}")]
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]}?"
    return f"unknown key; {section} has {', '.join(dict.fromkeys(siblings))}"


def _reason(detail: ErrorDetails, context: Mapping[str, object]) -> str:
    kind = detail["type"]
    if kind in _LIMITS:
        shown = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
        return _LIMITS[kind].format(**shown)
    return _TYPES.get(kind, detail["msg"])


def _given(detail: ErrorDetails, *, is_secret: bool) -> str:
    if is_secret:
        return ""
    given = detail["input"]
    text = str(given) if isinstance(given, bool | int | float) else repr(given)
    return f", is {text[:80]}"
