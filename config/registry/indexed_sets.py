"""Sets under keys that are not there when they are empty."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Hashable)


def discard(index: dict[Key, set[Value]], key: Key, value: Value) -> None:
    held = index.get(key)
    if held is not None:
        held.discard(value)
        if not held:
            del index[key]


def put_or_discard(index: dict[Key, set[Value]], key: Key, value: Value, *, is_there: bool) -> None:
    if is_there:
        index.setdefault(key, set()).add(value)
    else:
        discard(index, key, value)


def put_or_discard_value(held: set[Value], value: Value, *, is_there: bool) -> None:
    if is_there:
        held.add(value)
    else:
        held.discard(value)
