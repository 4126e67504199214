"""Resources in the control process: what is kept, forwarded, prefetched, saved and restored."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from dataplane.control import saved_state
from dataplane.control.errors import SavedStateUnusable
from dataplane.control.resources import BATCH_BYTES, BATCH_RESOURCES, batches
from dataplane.control.saved_state import FILE_NAME, SavedState, decode_held, encode_held
from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE
from proto.istio import authorization_pb2, workload_pb2
from proto.mycelia import worker_pb2 as pb
from tests.dataplane.control.fakes import Identities
from tests.dataplane.state.builders import address, service, workload
from ztunnel.control.resources import Resources
from ztunnel.state.connection_limits import CONNECTION_LIMITS_TYPE


class Bench:
    def __init__(self, node: str = "n1") -> None:
        self.identities = Identities()
        self.sent: list[pb.ToWorker] = []
        self.changes = 0
        self.resources = Resources(node, self.identities, self.sent.append, self._count)

    def _count(self) -> None:
        self.changes += 1

    def apply(
        self, *resources: workload_pb2.Workload | workload_pb2.Service, removed: tuple[str, ...] = ()
    ) -> dict[str, str]:
        upserts = [(name, "v1", value) for name, value in map(address, resources)]
        return self.resources.apply(ADDRESS_TYPE, upserts, removed)

    def forwarded(self) -> list[tuple[list[str], list[str]]]:
        return [([r.name for r in m.resources.upserts], list(m.resources.removed)) for m in self.sent]


def test_accepted_resources_are_kept_and_forwarded_and_refused_ones_are_not() -> None:
    bench = Bench()
    bad = workload("bad")
    bad.tunnel_protocol = workload_pb2.LEGACY_ISTIO_MTLS
    assert set(bench.apply(workload("good"), bad)) == {"bad"}
    assert bench.forwarded() == [(["good"], [])]
    assert bench.resources.versions() == {
        AUTHORIZATION_TYPE: {},
        CONNECTION_LIMITS_TYPE: {},
        ADDRESS_TYPE: {"good": "v1"},
    }
    assert bench.changes == 1


def test_removal_is_forwarded_and_forgotten() -> None:
    bench = Bench()
    bench.apply(workload("a"), workload("b"))
    bench.apply(removed=("a", "unknown"))
    assert bench.forwarded()[1:] == [([], ["a", "unknown"])]
    assert list(bench.resources.held[ADDRESS_TYPE]) == ["b"]


def test_replay_is_policies_first_then_addresses_in_order_of_arrival() -> None:
    bench = Bench()
    bench.apply(workload("a"), workload("b"))
    bench.apply(workload("a", "10.0.0.9"))
    policy = authorization_pb2.Authorization(name="p", namespace="ns").SerializeToString()
    bench.resources.apply(AUTHORIZATION_TYPE, [("ns/p", "", policy)], ())
    assert [
        (m.resources.type_url, [r.name for r in m.resources.upserts]) for m in bench.resources.replay()
    ] == [
        (AUTHORIZATION_TYPE, ["ns/p"]),
        (ADDRESS_TYPE, ["b", "a"]),
    ]
    assert [key for key, _ in bench.resources.policies()] == ["ns/p"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40_000), max_size=30), st.integers(0, 450))
def test_batches_are_bounded_and_lose_nothing(sizes: list[int], removals: int) -> None:
    upserts = [(f"n{number}", b"x" * size) for number, size in enumerate(sizes)]
    removed = [f"r{number}" for number in range(removals)]
    messages = [message.resources for message in batches(ADDRESS_TYPE, upserts, removed)]
    assert [(r.name, r.value) for m in messages for r in m.upserts] == upserts
    assert [name for m in messages for name in m.removed] == removed
    for message in messages:
        assert 0 < len(message.upserts) + len(message.removed) <= BATCH_RESOURCES
        assert len(message.upserts) == 1 or message.ByteSize() <= BATCH_BYTES + 8192


# --- which identities the node needs ---


def local(uid: str, account: str, node: str = "n1", **fields: object) -> workload_pb2.Workload:
    return workload(uid, account=account, node=node, **fields)  # type: ignore[arg-type]


def test_identities_are_prefetched_on_arrival_and_forgotten_with_the_last_workload() -> None:
    bench = Bench()
    bench.apply(local("a", "x"), local("b", "x"), local("far", "y", node="n2"))
    bench.apply(removed=("a", "far"))
    assert bench.identities.calls == [("want", "x"), ("want", "x")]
    bench.apply(removed=("b",))
    assert bench.identities.calls[2:] == [("forget", "x")]


def test_plain_workloads_are_not_prefetched_native_tunnels_are() -> None:
    bench = Bench()
    bench.apply(local("a", "x", hbone=False), local("b", "y", hbone=False, native_tunnel=True))
    assert bench.identities.calls == [("want", "y")]
    bench.apply(local("a", "x"))
    assert bench.identities.calls[1:] == [("want", "x")]


def test_an_update_does_not_drop_and_refetch() -> None:
    bench = Bench()
    bench.apply(local("a", "x"))
    bench.apply(local("a", "x", healthy=False))
    assert ("forget", "x") not in bench.identities.calls
    bench.apply(local("a", "z"))
    assert bench.identities.calls[-2:] == [("want", "z"), ("forget", "x")]
    bench.apply(local("a", "z", node="n2"))
    assert bench.identities.calls[-1] == ("forget", "z")


def test_without_a_node_name_every_workload_is_local() -> None:
    bench = Bench(node="")
    bench.apply(local("a", "x", node="anywhere"))
    assert bench.identities.calls == [("want", "x")]


# --- on disk ---

HELD = {AUTHORIZATION_TYPE: {"ns/p": ("", b"\x01")}, ADDRESS_TYPE: {"b": ("2", b"B"), "a": ("1", b"A" * 100)}}


def saver(directory: Path) -> SavedState:
    return SavedState(directory, lambda: HELD)


async def test_saved_resources_come_back_in_order(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "state"
    state = saver(directory)
    assert state.load() == {}
    state.note_change()
    assert await state.save()
    found = saver(directory).load()
    assert found == HELD
    assert list(found[ADDRESS_TYPE]) == ["b", "a"]
    assert (directory / FILE_NAME).stat().st_mode & 0o077 == 0
    assert [path.name for path in directory.iterdir()] == [FILE_NAME]


def test_many_resources_survive_encoding() -> None:
    held = {ADDRESS_TYPE: {f"n{number}": (str(number), os.urandom(50)) for number in range(1001)}}
    assert decode_held(encode_held(held)) == held


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_file_is_never_used(noise: bytes, position: int, byte: int) -> None:
    good = encode_held(HELD)
    changed = bytearray(good)
    changed[position % len(good)] = byte
    for data in (noise, good[: position % len(good)], good + noise + b"x", bytes(changed)):
        if data != good:
            with pytest.raises(SavedStateUnusable):
                decode_held(data)


async def test_a_damaged_file_is_a_warning_and_an_empty_start(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"garbage")
    assert saver(tmp_path).load() == {}
    state = saver(tmp_path)
    state.note_change()
    assert await state.save()
    assert saver(tmp_path).load() == HELD


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work for threads is done at once: a mock clock does not wait for real ones."""

    async def run_sync(work: Callable[..., None], *arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.mark.usefixtures("inline_threads")
async def test_saves_once_for_many_changes_and_again_for_later_ones(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []
    monkeypatch.setattr(SavedState, "_write", lambda _self, _data: written.append(1.0))
    state = saver(tmp_path)
    nursery.start_soon(state.run)
    for _ in range(100):
        state.note_change()
        await trio.lowlevel.checkpoint()
    await trio.sleep(saved_state.SETTLE_S * 3)
    assert len(written) == 1
    state.note_change()
    await trio.sleep(saved_state.SETTLE_S * 3)
    assert len(written) == 2


@pytest.mark.usefixtures("inline_threads")
async def test_a_full_disk_is_a_warning_keeps_the_old_file_and_is_tried_again(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saver(tmp_path)
    good.note_change()
    await good.save()
    before = (tmp_path / FILE_NAME).read_bytes()
    is_full = [True]
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if is_full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    state = SavedState(tmp_path, lambda: {ADDRESS_TYPE: {"new": ("1", b"N")}})
    nursery.start_soon(state.run)
    state.note_change()
    await trio.sleep(saved_state.SETTLE_S * 2)
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    is_full[0] = False
    await trio.sleep(saved_state.RETRY_S + saved_state.SETTLE_S * 2)
    assert state.load() == {ADDRESS_TYPE: {"new": ("1", b"N")}}


async def test_restore_applies_prefetches_and_forwards_like_a_response(tmp_path: Path) -> None:
    first = Bench()
    first.apply(service("web.default", "10.1.0.1"), local("a", "x"))
    state = SavedState(tmp_path, lambda: first.resources.held)
    state.note_change()
    await state.save()
    second = Bench()
    assert second.resources.restore(SavedState(tmp_path, dict).load()) == 2
    assert second.resources.versions() == first.resources.versions()
    assert second.identities.calls == [("want", "x")]
    assert second.resources.state.service_by_vip("", "10.1.0.1", "default") is not None
