"""When a worker says that it holds as much as it may."""

from __future__ import annotations

from dataclasses import dataclass

from waypoint.worker.memory import MemoryWatch, resident_bytes, trim

LIMIT = 1000


@dataclass
class Machine:
    now: float = 0.0
    held: int = 0
    looks: int = 0
    releases: int = 0

    def resident(self) -> int:
        self.looks += 1
        return self.held

    def release(self) -> None:
        self.releases += 1

    def watch(self, limit: int = LIMIT) -> MemoryWatch:
        return MemoryWatch(limit, lambda: self.now, resident=self.resident, release=self.release)


def test_short_at_the_limit_and_not_below() -> None:
    machine = Machine(held=LIMIT - 1)
    watch = machine.watch()
    assert not watch.is_short
    machine.now, machine.held = 1.0, LIMIT
    assert watch.is_short


def test_looks_seldom_however_often_it_is_asked() -> None:
    machine = Machine()
    watch = machine.watch()
    for _ in range(100):
        assert not watch.is_short
    assert machine.looks == 1


def test_gives_back_what_is_free_before_it_looks_again_and_only_then() -> None:
    machine = Machine(held=LIMIT)
    watch = machine.watch()
    seen = []
    for now, held in ((0.0, LIMIT), (1.0, 0), (2.0, 0)):
        machine.now, machine.held = now, held
        seen.append((watch.is_short, machine.releases))
    assert seen == [(True, 0), (False, 1), (False, 1)]


def test_without_a_limit_nothing_is_looked_at() -> None:
    machine = Machine(held=1 << 40)
    assert not machine.watch(0).is_short
    assert machine.looks == 0


def test_the_kernel_tells_the_size_and_takes_memory_back() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    full = resident_bytes()
    del block
    trim()
    assert full > 64 << 20
    assert resident_bytes() < full - (32 << 20)
