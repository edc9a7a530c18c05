"""A configuration as JSON, read back with every field checked, and what differs between two.

Source: this project.
"""

import dataclasses
import json
import types
import typing

from minidalle.config import Config
from minidalle.config_check import check_config


def config_to_json(config: object) -> str:
    """Return a configuration (any frozen dataclass of config.py) as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str, kind: type = Config) -> object:
    """Rebuild a configuration of type `kind` from `config_to_json`.

    Raises ValueError naming the first field that is unknown, missing or of the wrong type.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the configuration is not JSON: {error}") from None
    config = _build(kind, values, kind.__name__)
    if isinstance(config, Config):
        check_config(config)
    return config


def _build(kind: type, value: object, name: str) -> object:
    """Turn a JSON value into an instance of `kind`; `name` is its path, for the error."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, name)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{name} must hold {len(kinds)} values, got {value!r}")
        return tuple(_build(k, v, name) for k, v in zip(kinds, value, strict=True))
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) is int and float in allowed and int not in allowed:
        return float(value)
    if type(value) not in allowed:
        raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def _build_dataclass(kind: type, value: object, name: str) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of fields, got {value!r}")
    kinds = typing.get_type_hints(kind)
    if unknown := [key for key in value if key not in kinds]:
        raise ValueError(f"{name} has no field {unknown[0]!r}; it has {', '.join(kinds)}")
    fields = {key: _build(kinds[key], v, f"{name}.{key}") for key, v in value.items()}
    try:
        return kind(**fields)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{name}: {error}") from None


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """List, as 'section.field was A, is now B', where two nested dicts differ."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(f"{name} was {a}, is now {b}")
    return found
