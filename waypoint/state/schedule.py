"""Earliest deadline first: each pick moves an item's deadline on by 1/weight: shares follow the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Schedule(Generic[_Item]):
    """A turn for each item, the more often the heavier.

    `weigh` is asked anew at each pick (it is positive), so weights may move with time or load. The first
    deadlines lie anywhere in an item's period: workers do not begin with the same item.
    """

    __slots__ = ("_heap", "_weigh")

    def __init__(
        self, items: Sequence[_Item], weigh: Callable[[_Item], float], random: Callable[[], float]
    ) -> None:
        self._weigh = weigh
        self._heap = [(random() / weigh(item), order, item) for order, item in enumerate(items)]
        heapify(self._heap)

    def pick(self) -> _Item:
        """The item whose turn it is; there is at least one."""
        deadline, order, item = self._heap[0]
        heapreplace(self._heap, (deadline + 1.0 / self._weigh(item), order, item))
        return item
