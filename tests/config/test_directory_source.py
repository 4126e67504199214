"""The directory source on a real directory: editors, symbolic links, bad files, restarts."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from config.errors import SourceUnreadable
from config.source.directory import DirectorySource
from config.source.files import MAX_FILE_BYTES
from config.source.inotify import Inotify, InotifyUnavailable
from config.source.last_good import LastGood
from config.source.manifest_set import Changes

PATIENCE_S = 10.0  # never waited for: only a failing test gets there


def document(name: str, label: str = "") -> str:
    labels = f", labels: {{v: '{label}'}}" if label else ""
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n"


class Watched:
    def __init__(self, source: DirectorySource) -> None:
        self.source = source
        self.seen: list[dict[str, str]] = []
        self._changed = trio.Event()

    def take(self, _changes: Changes) -> None:
        self.seen.append(self.in_force())
        self._changed.set()

    def in_force(self) -> dict[str, str]:
        return {
            ref.name: each.value.meta.labels.get("v", "")
            for ref, each in self.source.manifests.in_force.items()
        }

    async def until(self, expected: dict[str, str]) -> None:
        with trio.fail_after(PATIENCE_S):
            while self.in_force() != expected:
                self._changed = trio.Event()
                await self._changed.wait()

    async def until_problem(self, part: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while not any(part in str(problem) for problem in self.source.problems()):
                await trio.sleep(0.001)  # nothing is announced when only a problem changes


@asynccontextmanager
async def watching(directory: Path, last_good: LastGood | None = None) -> AsyncIterator[Watched]:
    source = DirectorySource(directory, last_good)
    watched = Watched(source)
    await source.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run, watched.take)
        yield watched
        nursery.cancel_scope.cancel()


async def test_files_come_change_and_go(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document("x"))
    async with watching(tmp_path) as watched:
        assert watched.in_force() == {"x": ""}
        (tmp_path / "b.yml").write_text(document("y"))
        await watched.until({"x": "", "y": ""})
        (tmp_path / "c.json").write_text(
            '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "z"}}'
        )
        await watched.until({"x": "", "y": "", "z": ""})
        (tmp_path / "a.yaml").write_text(document("x", "2"))
        await watched.until({"x": "2", "y": "", "z": ""})
        (tmp_path / "b.yml").unlink()
        await watched.until({"x": "2", "z": ""})
        (tmp_path / "c.json").rename(tmp_path / "c.json~")
        await watched.until({"x": "2"})


async def test_editors_that_write_aside_and_rename(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document("x", "1"))
    async with watching(tmp_path) as watched:
        (tmp_path / ".a.yaml.swp").write_text("{[")
        (tmp_path / ".a.yaml.new").write_text(document("x", "2"))
        (tmp_path / ".a.yaml.new").rename(tmp_path / "a.yaml")
        await watched.until({"x": "2"})
        # vim: move away, write anew, remove the backup
        (tmp_path / "a.yaml").rename(tmp_path / "a.yaml~")
        (tmp_path / "a.yaml").write_text(document("x", "3"))
        (tmp_path / "a.yaml~").unlink()
        await watched.until({"x": "3"})
        assert watched.source.problems() == []


async def test_a_new_file_is_not_read_before_its_writer_is_done(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document("x", "1"))
    async with watching(tmp_path) as watched:
        with (tmp_path / "b.yaml").open("w") as half:
            half.write(document("y"))
            half.flush()
            (tmp_path / "a.yaml").write_text(document("x", "2"))
            await watched.until({"x": "2"})
            half.write("---\n" + document("z"))
        await watched.until({"x": "2", "y": "", "z": ""})


async def test_a_replaced_file_is_never_seen_empty(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document("x", "1"))
    async with watching(tmp_path) as watched:
        (tmp_path / "a.yaml").rename(tmp_path / "a.bak")
        with (tmp_path / "a.yaml").open("w") as half:
            half.write("# slow writer\n")
            half.flush()
            (tmp_path / "other.yaml").write_text(document("y"))
            await watched.until({"x": "1", "y": ""})
            half.write(document("x", "2"))
        await watched.until({"x": "2", "y": ""})
        assert all("x" in each for each in watched.seen)


async def test_directories_come_and_go_with_their_files(tmp_path: Path) -> None:
    root, aside = tmp_path / "manifests", tmp_path / "aside"
    root.mkdir()
    aside.mkdir()
    (aside / "a.yaml").write_text(document("x"))
    async with watching(root) as watched:
        aside.rename(root / "team")
        await watched.until({"x": ""})
        (root / "team" / "b.yaml").write_text(document("y"))
        await watched.until({"x": "", "y": ""})
        (root / "team" / "deep").mkdir()
        (root / "team" / "deep" / "c.yaml").write_text(document("z"))
        await watched.until({"x": "", "y": "", "z": ""})
        (root / "team").rename(tmp_path / "gone")
        await watched.until({})


async def test_kubernetes_config_map_volumes(tmp_path: Path) -> None:
    """Visible names are links into `..data`, itself a link that is swapped by rename."""

    def publish(version: str, *texts: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        for index, text in enumerate(texts):
            (folder / f"{index}.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("1", document("x", "1"), document("y", "1"))
    for index in range(2):
        (tmp_path / f"{index}.yaml").symlink_to(f"..data/{index}.yaml")
    async with watching(tmp_path) as watched:
        assert watched.in_force() == {"x": "1", "y": "1"}
        publish("2", document("x", "2"), document("y", "2"))
        await watched.until({"x": "2", "y": "2"})


async def test_a_link_that_is_swapped(tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    root = tmp_path / "manifests"
    versions.mkdir()
    root.mkdir()
    for label in "12":
        (versions / label).write_text(document("x", label))
    (root / "a.yaml").symlink_to(versions / "1")
    async with watching(root) as watched:
        (root / "next").symlink_to(versions / "2")
        (root / "next").rename(root / "a.yaml")
        await watched.until({"x": "2"})
        (root / "loop.yaml").symlink_to("loop.yaml")
        (root / "dangling.yaml").symlink_to("nowhere")
        (root / "up").symlink_to("..")
        (root / "b.yaml").write_text(document("y"))
        await watched.until({"x": "2", "y": ""})


async def test_a_bad_file_keeps_what_it_had_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(document("x", "1"))
    async with watching(tmp_path) as watched:
        path.write_text("kind: [")
        await watched.until_problem("a.yaml, document 1, line 2: not valid YAML")
        assert watched.in_force() == {"x": "1"}
        path.write_bytes(b"\xff\xfe")
        await watched.until_problem("a.yaml: is not UTF-8 text")
        assert watched.in_force() == {"x": "1"}
        path.write_text(document("x", "2"))
        await watched.until({"x": "2"})
        assert watched.source.problems() == []


async def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(document("x"))
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "big.yaml").open("wb") as big:
        big.truncate(MAX_FILE_BYTES + 1)
    async with watching(tmp_path) as watched:
        assert watched.in_force() == {"x": ""}
        assert sorted(str(problem) for problem in watched.source.problems()) == [
            f"error: big.yaml: has {MAX_FILE_BYTES + 1} bytes; allowed: at most {MAX_FILE_BYTES}",
            "error: pipe.yaml: is not a regular file",
        ]


async def test_files_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object, _flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "a.yaml").write_text(document("x"))
    monkeypatch.setattr("config.source.files.os.open", forbidden)
    source = DirectorySource(tmp_path)
    source.load_blocking()
    assert [str(each) for each in source.problems()] == ["error: a.yaml: cannot be opened: Permission denied"]


async def test_a_vanished_directory_takes_nothing_down(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    (root / "a.yaml").write_text(document("x"))
    async with watching(root) as watched:
        root.rename(tmp_path / "elsewhere")
        await watched.until_problem("cannot be read")
        assert watched.in_force() == {"x": ""}


async def test_a_missing_directory_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot be read: No such file or directory"):
        await DirectorySource(tmp_path / "nowhere").load()


async def test_changes_between_loading_and_watching_are_found(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    watched = Watched(source)
    await source.load()
    (tmp_path / "a.yaml").write_text(document("x"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, watched.take)
        await watched.until({"x": ""})
        nursery.cancel_scope.cancel()


async def test_without_notices_the_source_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> Inotify:
        raise InotifyUnavailable("no inotify here")

    monkeypatch.setattr("config.source.directory.Inotify", unavailable)
    monkeypatch.setattr("config.source.directory.POLL_S", 0.001)
    async with watching(tmp_path) as watched:
        (tmp_path / "a.yaml").write_text(document("x"))
        await watched.until({"x": ""})


async def test_at_the_limit_of_watches_the_source_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(_self: Inotify, _directories: object) -> None:
        raise InotifyUnavailable("watching: No space left on device")

    monkeypatch.setattr(Inotify, "watch", limited)
    monkeypatch.setattr("config.source.directory.POLL_S", 0.001)
    async with watching(tmp_path) as watched:
        (tmp_path / "a.yaml").write_text(document("x"))
        await watched.until({"x": ""})


# ---- over restarts ----


async def restarted(manifests: Path, memory: Path, check: Callable[[Watched], None]) -> None:
    async with watching(manifests, LastGood(memory)) as watched:
        check(watched)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.mkdir()
    return path


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


async def test_a_file_that_is_bad_at_the_start_keeps_its_last_good_version(
    manifests: Path, memory: Path
) -> None:
    (manifests / "a.yaml").write_text(document("x", "1") + "---\n" + document("y"))
    async with watching(manifests, LastGood(memory)):
        pass
    (manifests / "a.yaml").write_text("kind: [")

    def check(watched: Watched) -> None:
        assert watched.in_force() == {"x": "1", "y": ""}
        assert len(watched.source.problems()) == 1

    await restarted(manifests, memory, check)
    await restarted(manifests, memory, check)  # and the memory survived being used


async def test_a_file_that_went_meanwhile_does_not_come_back(manifests: Path, memory: Path) -> None:
    (manifests / "a.yaml").write_text(document("x"))
    async with watching(manifests, LastGood(memory)):
        pass
    (manifests / "a.yaml").unlink()
    await restarted(manifests, memory, lambda watched: None)
    (manifests / "a.yaml").write_text("kind: [")

    def check(watched: Watched) -> None:
        assert watched.in_force() == {}

    await restarted(manifests, memory, check)


async def test_a_memory_that_cannot_be_written_stops_nothing(manifests: Path, memory: Path) -> None:
    memory.rmdir()
    async with watching(manifests, LastGood(memory)) as watched:
        (manifests / "a.yaml").write_text(document("x"))
        await watched.until({"x": ""})


async def test_damaged_memory_is_as_none(manifests: Path, memory: Path) -> None:
    (manifests / "a.yaml").write_text(document("x"))
    async with watching(manifests, LastGood(memory)):
        pass
    for path in memory.iterdir():
        path.write_bytes(b"\xff")
    (manifests / "a.yaml").write_text("kind: [")

    def check(watched: Watched) -> None:
        assert watched.in_force() == {}

    await restarted(manifests, memory, check)
