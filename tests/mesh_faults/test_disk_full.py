"""Every program keeps its state on a disk of its own, a tiny one, and that is full: all goes on as it was."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.mesh import Mesh, namespace
from tests.mesh_faults.traffic import Scene, can_talk

pytestmark = pytest.mark.namespaces

DISK = "256k"


class SmallDisks(Mesh):
    """A mesh whose state directories are file systems of DISK bytes each."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._mounted: list[Path] = []
        self._mount(self.state)

    def start_control_plane(self) -> None:
        for processes in self.nodes.values():
            for name in ("agent", "ztunnel-state"):
                if not (path := processes.folder / name).exists():
                    self._mount(path)
        super().start_control_plane()

    def close(self) -> None:
        super().close()
        for path in self._mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        self._mounted.clear()

    def _mount(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        options = f"size={DISK},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
        self._mounted.append(path)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with SmallDisks(tmp_path_factory.mktemp("mesh")) as made:
        yield made


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[Callable[[], None]]:
    """No byte is left on the disk, until the block ends or what is yielded is called."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - the loop ends by it
    try:
        yield lambda: ballast.unlink(missing_ok=True)
    finally:
        ballast.unlink(missing_ok=True)


def contents(folder: Path) -> dict[str, bytes]:
    """What is there for good: a file that is being written may go while this looks."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if path.name not in {"ballast", "lock"}:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def told(log: Path, event: str) -> int:
    """How often a log has the event."""
    return sum(
        event in line.split("\t") or f'"message":"{event}"' in line for line in log.read_text().splitlines()
    )


def test_the_control_planes_disk(scene: Scene) -> None:
    mesh = scene.mesh
    log = mesh.directory / "control-plane.log"
    with scene.connect():
        before = contents(mesh.state)
        with filled(mesh.state) as free:
            fresh = mesh.add("fresh", "alpha")
            assert can_talk(mesh, fresh, scene.server), "captured, announced, certified"
            assert contents(mesh.state) == before, "the last good files"
            assert told(log, "captured_not_saved") == 1
            assert told(log, "last_good_not_saved") == 1
            free()
            mesh.apply("more", namespace("more", is_ambient=False))
            for name in ("more", fresh.name):
                wanted = f"# Last good version of {name}.yaml".encode()
                mesh.wait("all manifests to be remembered", lambda wanted=wanted: holds(mesh.state, wanted))  # type: ignore[misc]
            mesh.wait(
                "the capture to be saved", lambda: holds(mesh.state, fresh.name.encode(), "captured.json")
            )
    assert told(log, "captured_not_saved") == 1
    assert told(log, "last_good_not_saved") == 1
    mesh.withdraw("more")


def test_the_agents_disk(scene: Scene) -> None:
    mesh = scene.mesh
    disk = mesh.nodes["alpha"].folder / "agent"
    log = mesh.nodes["alpha"].folder / "agent.log"
    before = contents(disk)
    with filled(disk) as free:
        fresh = mesh.add("fresh", "alpha")
        assert can_talk(mesh, fresh, scene.server)
        assert contents(disk) == before, "the last good file"
        assert told(log, "state_not_saved") == 1
        with mesh.agent("alpha") as agent:
            assert "No space left" in str(agent.status())
        free()
        mesh.wait("the state to be saved", lambda: holds(disk, fresh.name.encode()))
    assert told(log, "state_not_saved") == 1
    with mesh.agent("alpha") as agent:
        mesh.wait("no problem any more", lambda: "No space left" not in str(agent.status()))
    scene.kill_agent("alpha")
    mesh.start_agent("alpha")
    with mesh.agent("alpha") as agent:
        agent.wait(f"default/{fresh.name}", timeout_s=10)


def test_the_ztunnels_disk(scene: Scene) -> None:
    mesh = scene.mesh
    disk = mesh.nodes["alpha"].folder / "ztunnel-state"
    log = mesh.nodes["alpha"].ztunnel_logs[-1]
    mesh.wait("the state to be saved", lambda: holds(disk, scene.server.name.encode()))
    before = contents(disk)
    with filled(disk) as free:
        fresh = mesh.add("fresh", "beta")
        mesh.wait("the warning", lambda: told(log, "saved_state_not_written"))
        assert contents(disk) == before, "the last good file"
        assert scene.can_talk()
        assert mesh.is_ready("alpha")
        free()
        mesh.wait("the state to be saved", lambda: holds(disk, fresh.name.encode()))
    assert told(log, "saved_state_not_written") == 1


def holds(disk: Path, text: bytes, name: str = "") -> bool:
    """A file of the disk (named `name`, if given) holds the text."""
    return any(text in content for path, content in contents(disk).items() if path.endswith(name))
