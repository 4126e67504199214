"""xxHash64, and the two tables that give a key the same endpoint while the others come and go.

xxHash64 is written out (its specification is short): keys are a few dozen octets, which take 2-4 us here, and
a package of its own for that is not worth its weight in a worker.

Tables hold indexes into the sequence of hosts, in `array`s: a Maglev table takes 256 KiB, a ring 12 octets a
place. Building one is bounded (`MAXIMUM_RING`), but takes tens of milliseconds of a worker's time, so callers
keep them until the hosts change (balance.py).
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import cycle, islice
from typing import Final

MAGLEV_SIZE: Final = 65537
MINIMUM_RING: Final = 1024
MAXIMUM_RING: Final = 1 << 16  # Envoy goes to 8 Mi; a larger ring only evens out shares further

_MASK = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5


def xxhash64(data: bytes, seed: int = 0) -> int:
    """The 64-bit xxHash of `data` (xxHash specification 0.1.1)."""
    length = len(data)
    position = 0
    if length >= 32:
        value, position = _stripes(data, seed)
    else:
        value = (seed + _P5) & _MASK
    value = (value + length) & _MASK
    while position + 8 <= length:
        lane = int.from_bytes(data[position : position + 8], "little")
        value ^= _round(0, lane)
        value = (((value << 27 | value >> 37) & _MASK) * _P1 + _P4) & _MASK
        position += 8
    if position + 4 <= length:
        value ^= int.from_bytes(data[position : position + 4], "little") * _P1 & _MASK
        value = (((value << 23 | value >> 41) & _MASK) * _P2 + _P3) & _MASK
        position += 4
    while position < length:
        value ^= data[position] * _P5 & _MASK
        value = ((value << 11 | value >> 53) & _MASK) * _P1 & _MASK
        position += 1
    value = (value ^ value >> 33) * _P2 & _MASK
    value = (value ^ value >> 29) * _P3 & _MASK
    return value ^ value >> 32


def _round(accumulator: int, lane: int) -> int:
    accumulator = (accumulator + lane * _P2) & _MASK
    return ((accumulator << 31 | accumulator >> 33) & _MASK) * _P1 & _MASK


def _stripes(data: bytes, seed: int) -> tuple[int, int]:
    lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
    position = 0
    while position + 32 <= len(data):
        for index in range(4):
            lane = int.from_bytes(data[position : position + 8], "little")
            lanes[index] = _round(lanes[index], lane)
            position += 8
    value = 0
    for accumulator, turn in zip(lanes, (1, 7, 12, 18), strict=True):
        value += accumulator << turn & _MASK | accumulator >> 64 - turn
    value &= _MASK
    for accumulator in lanes:
        value = ((value ^ _round(0, accumulator)) * _P1 + _P4) & _MASK
    return value, position


@dataclass(frozen=True, slots=True)
class Ring:
    """Ketama: the first place at or after the key's hash has the host."""

    places: array[int]
    hosts: array[int]

    def pick(self, key_hash: int) -> int:
        """The index of the host; the ring is not empty."""
        place = bisect_left(self.places, key_hash)
        return self.hosts[place if place < len(self.hosts) else 0]


def build_ring(hosts: Sequence[tuple[str, int]], minimum_size: int = MINIMUM_RING) -> Ring:
    """From (name, weight): each host gets its share of the places, at least one.

    `minimum_size` is kept within `MAXIMUM_RING`.
    """
    total = sum(weight for _, weight in hosts)
    size = max(min(minimum_size, MAXIMUM_RING), len(hosts))
    placed: list[tuple[int, int]] = []
    for index, (name, weight) in enumerate(hosts):
        count = max(1, -(-size * weight // total))
        placed.extend((xxhash64(f"{name}_{number}".encode()), index) for number in range(count))
    placed.sort()
    return Ring(array("Q", (place for place, _ in placed)), array("I", (index for _, index in placed)))


@dataclass(frozen=True, slots=True)
class Maglev:
    """Each of 65537 slots belongs to a host; shares follow the weights, and few slots move with a host."""

    slots: array[int]

    def pick(self, key_hash: int) -> int:
        return self.slots[key_hash % len(self.slots)]


def build_maglev(hosts: Sequence[tuple[str, int]], size: int = MAGLEV_SIZE) -> Maglev:
    """From (name, weight); `size` is prime and above the number of hosts."""
    order = sorted(range(len(hosts)), key=lambda index: hosts[index][0])
    walks = [_walk(hosts[index][0], size) for index in order]
    slots = array("I", bytes(4 * size))
    is_taken = bytearray(size)
    for place in islice(_turns([hosts[index][1] for index in order]), size):
        slot, skip = walks[place]
        while is_taken[slot]:
            slot += skip
            if slot >= size:
                slot -= size
        is_taken[slot] = 1
        slots[slot] = order[place]
        walks[place] = (slot, skip)
    return Maglev(slots)


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _turns(weights: Sequence[int]) -> Iterator[int]:
    """Whose turn it is to take a slot: round by round, or by earliest deadline where weights differ."""
    if len(set(weights)) == 1:
        yield from cycle(range(len(weights)))
    deadlines = [(1.0 / weight, place) for place, weight in enumerate(weights)]
    heapify(deadlines)
    while True:
        deadline, place = deadlines[0]
        yield place
        heapreplace(deadlines, (deadline + 1.0 / weights[place], place))


def _walk(name: str, size: int) -> tuple[int, int]:
    """Where a host begins to look for free slots, and its step."""
    encoded = name.encode()
    return xxhash64(encoded) % size, xxhash64(encoded, 1) % (size - 1) + 1
