"""Two indexes that answer "which selectors match these labels" and "what has the labels of this selector"
without looking at everything. A selector is a set of labels that must all be there; an empty one is not
kept here (it means different things to different kinds).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Labels = Mapping[str, str]

EVERYWHERE: Final = ""  # the namespace of selectors that look into all namespaces


def is_selected(selector: Labels, labels: Labels) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


class SelectorIndex(Generic[Key]):
    """Selectors by owner. Filed under one of their labels: a workload's labels lead to the candidates."""

    def __init__(self) -> None:
        self._selectors: dict[Key, tuple[str, Labels]] = {}
        self._filed: dict[tuple[str, str, str], set[Key]] = {}

    def put(self, key: Key, namespace: str, selector: Labels) -> None:
        """Replaces the owner's selector; an empty one removes it."""
        self.remove(key)
        if selector:
            self._selectors[key] = (namespace, selector)
            self._filed.setdefault(_file_under(namespace, selector), set()).add(key)

    def remove(self, key: Key) -> None:
        known = self._selectors.pop(key, None)
        if known is not None:
            _discard(self._filed, _file_under(*known), key)

    def matching(self, namespace: str, labels: Labels) -> Iterator[Key]:
        """Owners whose selector matches, of this namespace and of those that look everywhere."""
        for place in (namespace, EVERYWHERE) if namespace else (EVERYWHERE,):
            for pair in labels.items():
                for key in self._filed.get((place, *pair), ()):
                    if is_selected(self._selectors[key][1], labels):
                        yield key


class LabelIndex(Generic[Key]):
    """Labelled things by each of their labels, within their namespace and overall."""

    def __init__(self) -> None:
        self._labels: dict[Key, tuple[str, Labels]] = {}
        self._having: dict[tuple[str, str, str], set[Key]] = {}

    def put(self, key: Key, namespace: str, labels: Labels) -> None:
        known = self._labels.get(key)
        if known == (namespace, labels):
            return
        self.remove(key)
        self._labels[key] = (namespace, labels)
        for pair in labels.items():
            self._having.setdefault((namespace, *pair), set()).add(key)
            self._having.setdefault((EVERYWHERE, *pair), set()).add(key)

    def remove(self, key: Key) -> None:
        known = self._labels.pop(key, None)
        if known is None:
            return
        namespace, labels = known
        for pair in labels.items():
            _discard(self._having, (namespace, *pair), key)
            _discard(self._having, (EVERYWHERE, *pair), key)

    def selected(self, namespace: str, selector: Labels) -> Iterator[Key]:
        """What a selector of that namespace (or of EVERYWHERE) selects; nothing for an empty selector."""
        filed: list[set[Key]] = [self._having.get((namespace, *pair), set()) for pair in selector.items()]
        if not filed:
            return
        filed.sort(key=len)
        fewest, *others = filed
        for key in fewest:
            if all(key in other for other in others):
                yield key


def _file_under(namespace: str, selector: Labels) -> tuple[str, str, str]:
    """The longest label: `app: web` tells more than `tier: x`, and any choice is correct."""
    pair = max(selector.items(), key=lambda item: (len(item[0]) + len(item[1]), item))
    return (namespace, *pair)


def _discard(index: dict[tuple[str, str, str], set[Key]], at: tuple[str, str, str], key: Key) -> None:
    held = index.get(at)
    if held is not None:
        held.discard(key)
        if not held:
            del index[at]
