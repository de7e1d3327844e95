"""Reads dataclasses from JSON, by the types of their fields."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def read_fields(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a dataclass from a JSON object; dataclasses in it are read too.

    Names that the dataclass does not have are ignored, since later versions may write them. Fields with defaults may be
    missing, since earlier versions may not have them. A dataclass with a method `from_json` is read with it.

    Args:
        kind: the dataclass.
        content: the JSON object.

    Raises:
        KeyError: if a field without a default is missing.
        TypeError: if a value has another type than its field; names the field.
    """
    hints = get_type_hints(kind)
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    names = [each.name for each in fields(kind) if each.name in content or each.name in needed]
    return {name: _read(hints[name], content[name], name) for name in names}


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for each in inner:
            try:
                return _read(each, value, name)
            except TypeError as error:
                problem = error
        raise problem
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(_read(inner[0], each, name) for each in value)
    if isinstance(value, Mapping):
        if origin is dict:
            return {key: _read(inner[1], each, name) for key, each in value.items()}
        if isinstance(kind, type) and is_dataclass(kind):
            return kind.from_json(value) if hasattr(kind, "from_json") else kind(**read_fields(kind, value))
    fits = value in inner if origin is Literal else origin is None and _is(value, kind)
    if not fits:
        raise TypeError(f"its {name} is {repr(value)[:80]}")
    return value


def _is(value: Any, kind: Any) -> bool:
    """Returns whether a value has a type; JSON may write whole floats as integers, and booleans are no numbers."""
    if kind in (Any, None, NoneType):
        return kind is Any or value is None
    if issubclass(kind, int | float) and kind is not bool:
        return isinstance(value, int | float if issubclass(kind, float) else int) and not isinstance(value, bool)
    return isinstance(value, kind)
