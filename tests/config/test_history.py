"""Versions of the manifest directory: kept whole, bounded, shown, and brought back."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from config.errors import RestoreRefused, StateDamaged, VersionUnknown
from config.history import recorder as recorder_module
from config.history.recorder import QUIET_S, Recorder
from config.history.restore import carry_out, plan
from config.history.store import Difference, History
from mesh.cli import main
from tests.config.test_control_plane import running

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)


def document(name: str) -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"


class Place:
    """A manifest directory and the history of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.state = tmp_path / "state"
        self.state.mkdir(mode=0o700)
        self.manifests = tmp_path / "manifests"
        self.manifests.mkdir()
        self.history = History(self.state / "history")
        self.recorder = Recorder(self.manifests, self.state / "history", lambda: 0, now=lambda: NOW)

    def write(self, name: str, text: str) -> None:
        path = self.manifests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def record(self, errors: int = 0) -> int:
        """The number of the version that was made; 0: nothing had changed."""
        version = self.recorder.record_blocking(errors)
        return 0 if version is None else version.number

    def contents(self) -> dict[str, str]:
        return {
            path.relative_to(self.manifests).as_posix(): path.read_text()
            for path in self.manifests.rglob("*")
            if path.is_file()
        }

    def restore(self, number: int) -> Difference:
        difference, steps = plan(self.history, self.history.version(number), self.manifests)
        carry_out(steps)
        return difference

    def command(self, *words: str) -> int:
        options = ["--state-dir", str(self.state), "--manifests", str(self.manifests)]
        return main(["config", words[0], *options, *words[1:]])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# Recording


def test_a_version_is_what_the_directory_holds(place: Place) -> None:
    place.write("a.yaml", document("a"))
    place.write("deep/b.yaml", "broken: [")
    place.write("notes.txt", "no manifest")
    assert place.record(errors=1) == 1
    version = place.history.version(1)
    assert {name: place.history.text(digest) for name, digest in version.files.items()} == {
        "a.yaml": document("a"),
        "deep/b.yaml": "broken: [",
    }
    assert (version.errors, version.time) == (1, NOW)


def test_only_changes_make_versions_and_texts_are_kept_once(place: Place) -> None:
    place.write("a.yaml", document("a"))
    place.write("b.yaml", document("a"))
    assert (place.record(), place.record()) == (1, 0)
    place.write("b.yaml", document("b"))
    assert place.record() == 2
    os.utime(place.manifests / "b.yaml", ns=(1, 1))
    assert place.record() == 0
    place.write("b.yaml", document("a"))
    assert place.record() == 3
    assert place.history.version(3).files == place.history.version(1).files
    assert len(list((place.state / "history" / "texts").rglob("*.z"))) == 2


def test_a_new_process_goes_on_counting(place: Place) -> None:
    place.write("a.yaml", document("a"))
    assert place.record() == 1
    again = Recorder(place.manifests, place.state / "history", lambda: 0, now=lambda: NOW)
    assert again.record_blocking(0) is None
    place.write("a.yaml", document("b"))
    version = again.record_blocking(0)
    assert version is not None
    assert version.number == 2


def test_old_versions_go_and_their_texts_with_them(place: Place) -> None:
    for number in range(6):
        place.write("a.yaml", document(f"a{number}"))
        place.record()
    place.history.prune(max_versions=3)
    assert place.history.numbers() == [4, 5, 6]
    assert len(list((place.state / "history" / "texts").rglob("*.z"))) == 3
    place.history.prune(max_bytes=1)
    assert place.history.numbers() == [6]  # the latest stays
    with pytest.raises(VersionUnknown, match="6 to 6 are kept"):
        place.history.version(2)


def test_what_is_damaged_is_named_and_the_rest_goes_on(place: Place) -> None:
    place.write("a.yaml", document("a"))
    place.record()
    text = next((place.state / "history" / "texts").rglob("*.z"))
    text.write_bytes(b"nonsense")
    with pytest.raises(StateDamaged):
        place.history.text(text.stem)
    place.write("a.yaml", document("b"))
    place.record()
    (place.state / "history" / f"{2:010}.json").write_text("{")
    with pytest.raises(StateDamaged, match="remove it"):
        raise_with_step(lambda: place.history.version(2))
    latest = place.history.latest()
    assert latest is not None
    assert latest.number == 1
    place.write("a.yaml", document("c"))
    assert place.record() == 3


def raise_with_step(call: Callable[[], object]) -> None:
    try:
        call()
    except StateDamaged as error:
        raise StateDamaged(f"{error.text} {error.next_step}") from error


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Time that jumps must not jump over a thread's work, so that is done here and now."""

    async def work(call: Callable[..., object], *arguments: object) -> object:
        await trio.lowlevel.checkpoint()
        return call(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", work)
    return trio.testing.MockClock(autojump_threshold=0)


async def test_a_burst_is_one_version(place: Place, virtual_time: trio.testing.MockClock) -> None:
    place.write("a.yaml", document("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.recorder.run)
        await trio.sleep(QUIET_S * 3)
        assert place.history.numbers() == [1]
        for number in range(10):
            place.write("a.yaml", document(f"a{number}"))
            place.recorder.changed()
            await trio.sleep(QUIET_S / 2)
        await until(lambda: place.history.numbers() == [1, 2])
        assert place.history.text(place.history.version(2).files["a.yaml"]) == document("a9")
        nursery.cancel_scope.cancel()


async def test_without_quiet_it_is_recorded_at_times(
    place: Place, virtual_time: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.recorder.run)
        for number in range(200):
            place.write("a.yaml", document(f"a{number}"))
            place.recorder.changed()
            await trio.sleep(QUIET_S / 2)
        assert 2 <= len(place.history.numbers()) <= 6
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_kept_is_tried_again(place: Place, virtual_time: trio.testing.MockClock) -> None:
    place.write("a.yaml", document("a"))
    blocked = place.state / "history"
    blocked.write_text("a file in the way")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.recorder.run)
        await trio.sleep(QUIET_S * 3)
        assert place.recorder._problem
        blocked.unlink()
        await trio.sleep(recorder_module.RETRY_S * 2)
        await until(lambda: place.history.numbers() == [1])
        nursery.cancel_scope.cancel()


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(600):
        while not is_so():
            await trio.sleep(0.5)


# Bringing back


def test_a_version_comes_back_exactly(place: Place) -> None:
    place.write("a.yaml", document("a"))
    place.write("deep/b.yaml", document("b"))
    place.record()
    before = place.contents()
    (place.manifests / "a.yaml").chmod(0o640)
    place.write("a.yaml", document("other"))
    place.write("c.yaml", document("c"))
    place.write("README", "stays")
    (place.manifests / "deep" / "b.yaml").unlink()
    (place.manifests / "deep").rmdir()
    assert place.restore(1) == Difference(("deep/b.yaml",), ("a.yaml",), ("c.yaml",))
    assert place.contents() == {**before, "README": "stays"}
    assert (place.manifests / "a.yaml").stat().st_mode & 0o777 == 0o640
    assert not place.restore(1)


def test_links_are_not_written_through(place: Place, tmp_path: Path) -> None:
    place.write("a.yaml", document("a"))
    place.record()
    (place.manifests / "a.yaml").unlink()
    (tmp_path / "elsewhere.yaml").write_text(document("elsewhere"))
    (place.manifests / "a.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(RestoreRefused, match="symbolic link"):
        place.restore(1)
    assert (tmp_path / "elsewhere.yaml").read_text() == document("elsewhere")


@pytest.mark.parametrize("name", ["../out.yaml", "/etc/x.yaml", "a/../../x.yaml", "x.sh"])
def test_no_name_leads_out_of_the_directory(place: Place, name: str) -> None:
    place.write("a.yaml", document("a"))
    place.record()
    path = place.state / "history" / f"{1:010}.json"
    data = json.loads(path.read_text())
    data["files"][name] = next(iter(data["files"].values()))
    path.write_text(json.dumps(data))
    with pytest.raises(RestoreRefused, match="no name of a manifest"):
        place.restore(1)


def test_a_failure_leaves_no_half_written_file(place: Place) -> None:
    place.write("a.yaml", document("a"))
    place.write("deep/b.yaml", document("b"))
    place.record()
    (place.manifests / "deep" / "b.yaml").unlink()
    (place.manifests / "deep").rmdir()
    place.write("a.yaml", document("other"))
    (place.manifests / "deep").write_text("a file where the directory was")
    with pytest.raises(RestoreRefused, match="cannot be written"):
        place.restore(1)
    assert place.contents() == {"a.yaml": document("other"), "deep": "a file where the directory was"}


# The command


def test_history_and_differences_are_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("a.yaml", document("a"))
    place.record()
    place.write("a.yaml", document("b"))
    place.write("c.yaml", document("c"))
    place.record(errors=2)
    assert place.command("history", "--json") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["version"], first["added"], first["errors"]) == (1, ["a.yaml"], 0)
    assert (second["changed"], second["added"], second["errors"]) == (["a.yaml"], ["c.yaml"], 2)
    assert place.command("history") == 0
    assert "~ a.yaml" in capsys.readouterr().out
    assert place.command("diff", "1", "2") == 1
    shown = capsys.readouterr().out
    assert "-metadata: {name: a}\n+metadata: {name: b}\n" in shown
    assert "c.yaml (version 2)" in shown
    assert place.command("diff") == 0
    (place.manifests / "c.yaml").unlink()
    assert place.command("diff") == 1
    assert "-metadata: {name: c}\n" in capsys.readouterr().out


def test_rollback_says_what_it_does_and_refuses_what_has_errors(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write("a.yaml", document("a"))
    place.record()
    place.write("a.yaml", "kind: Nothing\n")
    place.record(errors=1)
    place.write("a.yaml", document("b"))
    place.record()
    assert place.command("rollback", "1", "--dry-run") == 0
    assert capsys.readouterr().out == "~ a.yaml\n"
    assert place.contents() == {"a.yaml": document("b")}
    assert place.command("rollback", "1") == 0
    assert place.contents() == {"a.yaml": document("a")}
    assert place.command("rollback", "2") != 0
    assert "has errors" in capsys.readouterr().err
    assert place.contents() == {"a.yaml": document("a")}
    assert place.command("rollback", "2", "--force") == 0
    assert place.command("rollback", "2") == 0
    assert "already" in capsys.readouterr().out
    assert place.command("rollback", "9") != 0
    assert "no version 9" in capsys.readouterr().err


async def test_a_running_control_plane_keeps_versions_and_takes_one_up_again(place: Place) -> None:
    place.write("a.yaml", document("a"))
    async with running(place.manifests, place.state) as plane:
        await wait(lambda: place.history.numbers() == [1])
        place.write("a.yaml", document("b"))
        await wait(lambda: place.history.numbers() == [1, 2])
        assert await trio.to_thread.run_sync(place.command, "rollback", "1") == 0
        await wait(lambda: place.history.numbers() == [1, 2, 3])
        assert place.history.version(3).files == place.history.version(1).files
        await wait(lambda: plane.log.count("manifests_read") >= 2)
    async with running(place.manifests, place.state):
        await trio.sleep(0)
    assert place.history.numbers() == [1, 2, 3]


async def wait(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not is_so():
            await trio.sleep(0.1)
