"""Durable writes: what is on disk after each way to fail."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ca import private_files
from ca.errors import LoosePermissions, StateNotReadable, StateNotWritten

from .harness import DAY, NOW, WEB, make_authority, request_for


@pytest.fixture(name="tiny")
def _tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of its own, in the test run's private mount namespace."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return path


@pytest.mark.namespaces
def test_a_full_disk_keeps_the_old_content(tiny: Path) -> None:
    target = tiny / "state.pem"
    private_files.write(target, b"old")
    ballast = fill(tiny)
    with pytest.raises(StateNotWritten, match="No space left"):
        private_files.write(target, b"new" * 5000)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tiny.iterdir()) == ["ballast", "state.pem"]
    ballast.unlink()
    private_files.write(target, b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.namespaces
def test_an_authority_on_a_full_disk_is_not_half_made(tiny: Path) -> None:
    folder = tiny / "ca"
    folder.mkdir(mode=0o700)
    ballast = fill(tiny)
    with pytest.raises(StateNotWritten):
        make_authority(folder)
    assert not list(folder.rglob("*.pem"))
    ballast.unlink()
    made = make_authority(folder)
    assert make_authority(folder).roots_pem == made.roots_pem


@pytest.mark.namespaces
def test_a_due_issuing_ca_on_a_full_disk_goes_on_with_the_old_one(tiny: Path) -> None:
    folder = tiny / "ca"
    first = make_authority(folder)
    fill(tiny)
    later = NOW + 3 * 365 * DAY
    again = make_authority(folder, now=later)
    old, new = (authority.sign(request_for(WEB), WEB, DAY, later) for authority in (first, again))
    assert old.intermediates == new.intermediates


def test_a_file_size_limit_is_reported(tmp_path: Path) -> None:
    """The same without any privilege: the kernel cuts the write."""
    target = tmp_path / "state.pem"
    private_files.write(target, b"old")
    program = (
        "import resource, sys; from pathlib import Path; from ca import private_files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: private_files.write(Path(sys.argv[1]), b'n' * 5000)\n"
        "except private_files.StateNotWritten as error: print(error.text)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.pem"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StateNotWritten):
        private_files.write(tmp_path / "missing" / "x.pem", b"x")


def test_a_replaced_file_gets_the_safe_mode(tmp_path: Path) -> None:
    target = tmp_path / "key.pem"
    target.write_bytes(b"old")
    target.chmod(0o666)
    private_files.write(target, b"new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_left_overs_of_a_crash_do_not_hinder(tmp_path: Path) -> None:
    target = tmp_path / "key.pem"
    (tmp_path / f".key.pem.{os.getpid()}.new").write_bytes(b"half")
    private_files.write(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


def test_odd_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir()
    large = tmp_path / "large"
    large.touch(0o600)
    os.truncate(large, private_files.MAX_FILE_BYTES + 1)
    for name in ("fifo", "folder", "large"):
        with pytest.raises(StateNotReadable):
            private_files.read_private(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        private_files.read_private(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "key.pem"
    private_files.write(target, b"x")
    try:
        os.chown(target, 1, 1)
    except OSError:
        pytest.skip("this user namespace has one user only")
    with pytest.raises(LoosePermissions, match="user 1"):
        private_files.read_private(target)
