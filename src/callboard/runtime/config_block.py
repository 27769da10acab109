"""Settings of rooms above this one: let through as they are, checked by the room that knows what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar, get_args, get_origin

from msgspec import Struct
from pydantic import BaseModel, SecretStr, ValidationError

from callboard.runtime import config_error, config_source
from callboard.runtime.errors import ConfigError

# The sections that are let through.
BLOCKS: Final = ("agents",)
Kind = TypeVar("Kind", bound=BaseModel)


class Shown(Struct, frozen=True):
    """One line of ``callboard config show``; secrets are already hidden."""

    key: str
    value: str
    origin: str


class Blocks:
    """What the sources say below ``BLOCKS``, and the environment that was read.

    It is no part of what settings are: all are equal, and none shows what it holds.
    """

    __slots__ = ("_env", "_values")

    def __init__(self, values: config_source.Values | None = None, env: Mapping[str, str] | None = None) -> None:
        self._values = values or {}
        self._env = dict(env or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks)

    def __hash__(self) -> int:
        return hash(Blocks)

    def __repr__(self) -> str:
        return "Blocks()"

    def values(self, name: str, *, variables: Mapping[str, str]) -> config_source.Values:
        """Return what is set below ``name``; ``variables`` as in ``Settings.block``."""
        keys = {variable: f"{name}.{key}" for variable, key in variables.items()}
        outside = config_source.read_variables(self._env, keys)
        own = {key: value for key, value in self._values.items() if key.partition(".")[0] == name}
        return config_source.merge([outside, own])

    def read(self, name: str, kind: type[Kind], *, variables: Mapping[str, str]) -> Kind:
        """Return a section as ``kind``. See ``Settings.block``.

        Raises:
            ConfigError: If it is wrong.
        """
        values = self.values(name, variables=variables)
        try:
            return kind.model_validate(config_source.nest(values).get(name, {}))
        except ValidationError as error:
            secrets = [key for key in _around(values) if is_secret(kind, key.split(".")[1:])]
            known = [f"{name}.{key}" for key, _ in leaves(kind)]
            message = config_error.explain(error, values=values, known=known, secrets=secrets, section=name)
            raise ConfigError(message) from None


def found(section: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the value of each setting below ``section``, with one line for each entry of a mapping.

    A secret's value is a ``SecretStr``, which does not show what it holds.
    """
    match section:
        case BaseModel():
            for name in type(section).model_fields:
                yield from found(getattr(section, name), f"{prefix}.{name}")
        case dict() if section:
            for name, item in section.items():
                yield from found(item, f"{prefix}.{name}")
        case _:
            yield prefix, section


def split(values: config_source.Values) -> tuple[config_source.Values, config_source.Values]:
    """Return the values of our own sections, and those of ``BLOCKS``."""
    foreign = {key: value for key, value in values.items() if key.partition(".")[0] in BLOCKS}
    return {key: value for key, value in values.items() if key not in foreign}, foreign


def _around(values: config_source.Values) -> Iterator[str]:
    """Yield every key and those around it: a mistake may be told of either."""
    for key in values:
        parts = key.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def as_text(value: object) -> str:
    """Return a value as ``callboard config show`` prints it."""
    match value:
        case None | ():
            return "-"
        case float():
            return f"{value:g}" if abs(value) < 1e5 else str(int(value) if value.is_integer() else value)  # noqa: PLR2004
        case dict():
            return ",".join(f"{key}={item}" for key, item in value.items()) or "-"
        case _:
            return str(value)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key of each setting and its type, ``SecretStr`` for optional secrets too."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", SecretStr if kind == SecretStr | None else kind


def is_secret(kind: object, path: Sequence[str]) -> bool:
    """Return whether ``path`` leads to a secret below ``kind``, or into one; the keys of a mapping are any."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(path[0]) if path else None
        return field is not None and is_secret(field.annotation, path[1:])
    if get_origin(kind) is dict:
        return is_secret(get_args(kind)[1], path[1:])
    return kind is SecretStr or SecretStr in get_args(kind)
