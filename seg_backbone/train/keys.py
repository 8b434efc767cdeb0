"""A dataclass from what YAML or JSON holds; what does not fit is told by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from seg_backbone.errors import ConfigError

T = TypeVar("T")
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}


def made(kind: type[T], data: Any, place: str = "") -> T:
    """kind(**data), a list being a tuple; a number that YAML takes for text (1e-3) is one.

    place: the key that holds `data`, "" for the whole file. Raises ConfigError for anything but a mapping, a key that
    `kind` does not have or that is missing, a number, a truth value or a text that is none, and what `kind` refuses.
    """
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    where = place or "the file"
    if not isinstance(data, Mapping):
        raise ConfigError(where, f"keys among {', '.join(known)}", repr(data), "write `key: value`")
    for name in data:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            todo = f"is it `{near[0]}`?" if near else "correct or drop it"
            raise ConfigError(where, f"keys among {', '.join(known)}", f"{name}", todo)
    for name, one in known.items():
        if name not in data and one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(where, f"the key `{name}`", "none", "add it")
    values = {
        name: _value(f"{place}.{name}" if place else name, str(known[name].type), value) for name, value in data.items()
    }
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (AssertionError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(where, "values that fit", f"{error}", "correct them") from None


def _value(name: str, annotation: str, value: Any) -> Any:
    """The value of a key whose annotation is a plain type, checked; any other one as it is."""
    plain = annotation.removesuffix(" | None")
    if isinstance(value, list):
        value = tuple(value)
    if plain not in TYPES or (value is None and plain != annotation):
        return value
    types, words = TYPES[plain]
    if plain == "float" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, types) or (isinstance(value, bool) and plain != "bool"):
        raise ConfigError(name, words, repr(value), "correct it")
    return value
