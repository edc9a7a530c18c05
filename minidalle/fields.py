"""What stands beside a field of a configuration: its range, its words; dicts read as they say."""

import contextlib
import dataclasses
import math
import types
import typing
from ast import literal_eval
from collections.abc import Mapping


def between(default: float | None, low: float, high: float = math.inf) -> typing.Any:
    """A number from low to high. A number without such a word beside it must be above 0."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def one_of(*choices: str) -> typing.Any:
    """One of these words, the first by default."""
    return dataclasses.field(default=choices[0], metadata={"choices": choices})


class Typed(str):
    """A value as it was typed on the command line, to be read as the type of its field.

    A text stays Typed in the configuration, so that it is known from one that a file held.
    """


def read_fields(kind: type, values: object, choices: Mapping, path: str = "") -> typing.Any:
    """Turn a dict into an instance of the dataclass `kind`, and the dicts in it into theirs.

    choices: at the top, fields that name the class of a section: the section, its classes by name.
    path: the name of a section within the whole, for errors. Raises ValueError naming the first
    field that is unknown, missing, of the wrong type or out of its range.
    """
    name = path.rstrip(".") or kind.__name__
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object of fields, got {values!r}")
    kinds, found = typing.get_type_hints(kind), {}
    for choice, (section, classes) in choices.items():
        first = next(iter(classes.values()))
        kinds[section] = classes.get(str(values.get(choice)), first)
    if unknown := [key for key in values if key not in kinds]:
        raise ValueError(f"unknown field: {name} has no {unknown[0]!r}; it has {', '.join(kinds)}")
    for f in dataclasses.fields(kind):
        if f.name in values and dataclasses.is_dataclass(kinds[f.name]):
            found[f.name] = read_fields(kinds[f.name], values[f.name], {}, f"{path}{f.name}.")
        elif f.name in values:
            found[f.name] = _read(kinds[f.name], values[f.name], path + f.name)
            _check_range(found[f.name], f.metadata, path + f.name)
    lacks = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if lacks := [field for field in lacks if field not in found]:
        raise ValueError(f"{name} lacks {', '.join(lacks)}")
    return kind(**found)


def _read(kind: type, value: object, name: str) -> object:
    """Return a value as the type of its field; an int serves as a float, nothing else does."""
    if isinstance(value, Typed) and kind is not str:
        words = {"true": True, "false": False, "none": None}
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = words[v] if (v := value.lower()) in words else literal_eval(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            raise ValueError(f"{name} must hold {len(kinds)} values, got {value!r}")
        return tuple(_read(k, v, name) for k, v in zip(kinds, value, strict=True))
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) is int and float in allowed:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if type(value) not in allowed and not (isinstance(value, Typed) and str in allowed):
        raise ValueError(f"{name}={value!r} is not a valid {getattr(kind, '__name__', kind)}")
    return value


def _check_range(value: object, allowed: Mapping, name: str) -> None:
    """Raise ValueError where the words beside a field do not allow its value."""
    choices = allowed.get("choices", (value,))
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose from {', '.join(choices)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high = allowed.get("low", math.ulp(0)), allowed.get("high", 2.0**63)
    if not low <= value or value in (math.inf, -math.inf):
        least = f"at least {low}" if "low" in allowed else "positive"
        raise ValueError(f"{name}={value} must be a number and {least}")
    if value > high:
        raise ValueError(f"{name}={value} must be at most {high}")
