"""Kinds of settings: numbers with their units and limits, sizes and labels as people write them."""

from __future__ import annotations

from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

_SIZES = TypeAdapter(ByteSize)


def _labels(value: object) -> object:
    """Take ``gpu=yes,zone=a`` from a variable or a flag as a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if not all(sign and name.strip() for name, sign, _ in pairs):
        kind, text = "labels", "must be written like gpu=yes,zone=a"
        raise PydanticCustomError(kind, text)
    return {key.strip(): text.strip() for key, _, text in pairs}


def size(value: object) -> object:
    """Take ``512MiB`` or ``2GB`` as a number of bytes; the field itself stays a plain int."""
    if not isinstance(value, str):
        return value
    try:
        return int(_SIZES.validate_python(value.strip()))
    except ValidationError:
        kind, text = "byte_size", "must be a number of bytes, like 512MiB or 2GB"
        raise PydanticCustomError(kind, text) from None


def _digits(value: object) -> object:
    """Take ``"3"``, as variables give it; a Literal of numbers accepts no text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Bytes = Annotated[int, BeforeValidator(size), Field(ge=1)]
BytesOrZero = Annotated[int, BeforeValidator(size), Field(ge=0)]
Replicas = Annotated[Literal[1, 3, 5], BeforeValidator(_digits)]
Labels = Annotated[dict[str, str], BeforeValidator(_labels)]


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, defaults checked like anything else."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def refuse(key: str, reason: str) -> NoReturn:
    """Fail a section's own check, telling ``config_error`` which key it is about."""
    kind = "cross"
    raise PydanticCustomError(kind, "{reason}", {"key": key, "reason": reason})
