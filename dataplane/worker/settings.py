"""What a data worker is told once, in Configure: a plain dataclass with a JSON form, no validation library.

The control process makes it from its own settings. Reading refuses unknown keys and wrong types, because a
worker that silently ignores half of its settings would be hard to find. None is allowed where the field's
annotation says so.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, TypeVar

from transport.errors import Blame, MeshError


class SettingsRejected(MeshError):
    """The settings in Configure are not those of this version of the worker."""

    code = "MYC-4502"
    blame = Blame.LOCAL


_Settings = TypeVar("_Settings")


def write_settings(settings: Any) -> str:
    """The JSON form of a settings dataclass."""
    return json.dumps(dataclasses.asdict(settings))


def read_settings(kind: type[_Settings], text: str) -> _Settings:
    """Raises SettingsRejected."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise SettingsRejected(f"the settings are not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SettingsRejected("the settings are not a JSON object")
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise SettingsRejected(f"unknown setting {name!r}")
        values[name] = _checked(name, value, hints[name])
    return kind(**values)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` in the type of its field; JSON has no tuples and writes 10.0 as 10."""
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise SettingsRejected(f"there is no {name} {value!r}: {', '.join(typing.get_args(hint))}")
        return value
    choices = typing.get_args(hint) if typing.get_origin(hint) not in (tuple, None) else (hint,)
    if value is None and type(None) in choices:
        return None
    expected = next(each for each in choices if each is not type(None))
    expected = typing.get_origin(expected) or expected
    if expected is float and type(value) is int:
        return float(value)
    if expected is tuple and isinstance(value, list):
        return tuple(value)
    if type(value) is not expected:
        raise SettingsRejected(f"setting {name!r} is a {type(value).__name__}, not a {expected.__name__}")
    return value
