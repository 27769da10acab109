"""Where settings come from: YAML files, environment variables and flags, merged with the origin of every value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from msgspec import Struct

from callboard.runtime.errors import ConfigError
from callboard.runtime.redact import is_secret_key

ENV_PREFIX = "CALLBOARD_"
ENV_DELIMITER = "__"
ENV_CONFIG = "CALLBOARD_CONFIG"
ENV_ALIASES = {"CALLBOARD_NATS_SERVER": "server.binary"}
SECRET_FILE_SUFFIX = "_file"  # noqa: S105 - the ending of variable names, not a secret

# $$ is a plain dollar; ${NAME} must be set; ${NAME:-text} falls back to text.
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")


class Value(Struct, frozen=True):
    """A value somebody set, and where.

    Attributes:
        origin: A file's path, ``env NAME``, ``flag`` or ``default``.
    """

    value: object
    origin: str


Values = dict[str, Value]
"""Dotted key (``nats.url``) to value."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                problem = f"key {key!r} is written twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_file(path: Path, *, env: Mapping[str, str], sections: Iterable[str]) -> Values:
    """Read one YAML file of sections into dotted keys, with ``${VAR}`` replaced in its strings.

    Raises:
        ConfigError: If it is missing, unreadable, not YAML, or not a mapping of sections.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        message = f"{path}: there is no such file; name another one or run without it to use the defaults"
        raise ConfigError(message) from error
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read ({error})"
        raise ConfigError(message) from error
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        message = f"{path}{_position(error)}: not valid YAML: {_problem(error)}"
        raise ConfigError(message) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        names = ", ".join(sections)
        message = f"{path}: must be a mapping with any of the sections {names}, is a {_kind(document)}"
        raise ConfigError(message)
    return _flatten(document, path=path, env=env)


def read_env(
    env: Mapping[str, str], *, secrets: Iterable[str], known: Iterable[str], blocks: Iterable[str] = ()
) -> Values:
    """Read ``CALLBOARD_SECTION__KEY`` variables; a secret may come as ``…_FILE``, the path of a file that holds it.

    The keys of ``blocks`` are not known here: among those a secret is what its name calls one.

    Names without ``__`` are not settings: Kubernetes itself sets ``CALLBOARD_PORT`` and the like beside a service
    called callboard, so they cannot be refused.

    Raises:
        ConfigError: If a secret's file cannot be read, or a secret comes both ways.
    """
    keys, secret_keys, foreign = set(known), set(secrets), set(blocks)
    values: Values = {}
    for name in sorted(env):
        key = ENV_ALIASES.get(name)
        if key is None and name.startswith(ENV_PREFIX) and ENV_DELIMITER in name:
            key = name.removeprefix(ENV_PREFIX).lower().replace(ENV_DELIMITER, ".")
        if key is None:
            continue
        value: object = env[name]
        base = key.removesuffix(SECRET_FILE_SUFFIX)
        named = key.partition(".")[0] in foreign and is_secret_key(base.rpartition(".")[2])
        if key != base and key not in keys and (base in secret_keys or named):
            plain = ENV_PREFIX + base.upper().replace(".", ENV_DELIMITER)
            if plain in env:
                message = f"env {name}: {base} is set by {plain} as well; keep one of the two"
                raise ConfigError(message)
            key, value = base, _read_secret(name, env[name])
        values[key] = Value(value, f"env {name}")
    return values


def read_variables(env: Mapping[str, str], keys: Mapping[str, str]) -> Values:
    """Read variables of any name, each into its dotted key; an empty one counts as not set."""
    return {key: Value(env[name], f"env {name}") for name, key in keys.items() if env.get(name)}


def read_flags(flags: Mapping[str, object], *, origin: str = "flag") -> Values:
    """Take dotted keys as given on the command line; None means that the flag was not used."""
    return {key: Value(value, origin) for key, value in flags.items() if value is not None}


def merge(layers: Iterable[Values]) -> Values:
    """Lay later layers over earlier ones, key by key. A layer that sets ``a`` replaces every ``a.b`` below it."""
    merged: Values = {}
    for layer in layers:
        for key, value in layer.items():
            for below in [other for other in merged if other.startswith(f"{key}.")]:
                del merged[below]
            merged[key] = value
    return merged


def nest(values: Values) -> dict[str, object]:
    """Return dotted keys as nested mappings; a key below a plain value keeps that value in its place.

    Raises:
        ConfigError: If one key sets ``a`` to a plain value and another sets ``a.b``.
    """
    tree: dict[str, object] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        branch = tree
        for depth, name in enumerate(parents):
            below = branch.setdefault(name, {})
            if not isinstance(below, dict):
                parent = ".".join(parents[: depth + 1])
                message = f"{value.origin}: {key}: {parent} is set to a plain value by {values[parent].origin}"
                raise ConfigError(message)
            branch = below
        branch[last] = value.value
    return tree


def _flatten(document: Mapping[object, object], *, path: Path, env: Mapping[str, str], prefix: str = "") -> Values:
    values: Values = {}
    for name, item in document.items():
        key = f"{prefix}{name}"
        if isinstance(item, dict) and item:
            values |= _flatten(item, path=path, env=env, prefix=f"{key}.")
        elif isinstance(item, str):
            values[key] = Value(_interpolate(item, path=path, key=key, env=env), str(path))
        elif item is not None:  # "section:" with nothing below it is an empty section, not an error
            values[key] = Value(item, str(path))
    return values


def _interpolate(text: str, *, path: Path, key: str, env: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        dollar, name, fallback = match.groups()
        if dollar:
            return "$"
        if name in env:
            return env[name]
        if fallback is None:
            message = f"{path}: {key}: the variable {name} is not set; set it, or write ${{{name}:-default}}"
            raise ConfigError(message)
        return str(fallback)

    return _VARIABLE.sub(replace, text)


def _read_secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"env {name}: the secret's file {path} cannot be read ({reason})"
        raise ConfigError(message) from error


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _kind(document: object) -> str:
    match document:
        case list():
            return "list"
        case str():
            return "text"
        case _:
            return type(document).__name__
