"""What an installation changes on a host, one by one: each says whether it is there, can be made and undone.

Everything is below `root`, which is `/` or a staging folder of a package builder or a test; programs that
change users and units get it as `--prefix` and `--root`. Making a change that is there does nothing; undoing
one that is not there does nothing: an interrupted run is mended by running it again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from mesh.errors import HostChangeError
from node.renewal import replace_file


@dataclass(frozen=True, slots=True)
class Host:
    """The host, or a folder that will become one."""

    root: Path = Path("/")

    @property
    def is_live(self) -> bool:
        return self.root == Path("/")

    def at(self, path: PurePosixPath) -> Path:
        return self.root / path.relative_to("/")

    def run(self, words: Sequence[str]) -> None:
        """Raises HostChangeError with what the program said."""
        done = self.ask(words)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise HostChangeError(f"`{' '.join(words)}` ended with {done.returncode}: {said}")

    def ask(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        except FileNotFoundError as error:
            raise HostChangeError(f"{words[0]} is not installed", next_step="this needs systemd") from error
        except subprocess.TimeoutExpired as error:
            raise HostChangeError(f"`{' '.join(words)}` took longer than a minute") from error


class Change(Protocol):
    """One thing on the host."""

    def describe(self) -> str: ...
    def is_made(self, host: Host) -> bool: ...
    def make(self, host: Host) -> None: ...
    def undo(self, host: Host) -> None: ...
    def is_gone(self, host: Host) -> bool: ...


@dataclass(frozen=True, slots=True)
class User:
    """A system user without a home or a shell, and its group."""

    name: str

    def describe(self) -> str:
        return f"system user {self.name}"

    def is_made(self, host: Host) -> bool:
        if host.is_live:
            with contextlib.suppress(KeyError):
                pwd.getpwnam(self.name)
                return True
            return False
        return self._is_in(host.at(PurePosixPath("/etc/passwd")))

    def _is_in(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(line.startswith(f"{self.name}:") for line in path.read_text().splitlines())
        return False

    def make(self, host: Host) -> None:
        place = [] if host.is_live else ["--prefix", str(host.root)]
        words = ["useradd", *place, "--system", "--user-group", "--no-create-home"]
        host.run([*words, "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", self.name])

    def undo(self, host: Host) -> None:
        place = [] if host.is_live else ["--prefix", str(host.root)]
        host.run(["userdel", *place, self.name])

    def is_gone(self, host: Host) -> bool:
        return not self.is_made(host)


@dataclass(frozen=True, slots=True)
class Directory:
    """`is_kept`: holds what only its owner may throw away, and goes only with a purge."""

    path: PurePosixPath
    mode: int = 0o755
    is_kept: bool = False

    def describe(self) -> str:
        return f"directory {self.path} ({self.mode:o})"

    def is_made(self, host: Host) -> bool:
        path = host.at(self.path)
        return path.is_dir() and path.stat().st_mode & 0o777 == self.mode

    def make(self, host: Host) -> None:
        path = host.at(self.path)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(self.mode)

    def undo(self, host: Host) -> None:
        shutil.rmtree(host.at(self.path), ignore_errors=False)

    def is_gone(self, host: Host) -> bool:
        return not host.at(self.path).exists()


@dataclass(frozen=True, slots=True)
class File:
    path: PurePosixPath
    content: str
    mode: int = 0o644

    def describe(self) -> str:
        return f"file {self.path} ({self.mode:o}, {len(self.content)} characters)"

    def is_made(self, host: Host) -> bool:
        path = host.at(self.path)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return path.read_text() == self.content and path.stat().st_mode & 0o777 == self.mode
        return False

    def make(self, host: Host) -> None:
        path = host.at(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, self.content, self.mode)
        path.chmod(self.mode)

    def undo(self, host: Host) -> None:
        host.at(self.path).unlink(missing_ok=True)

    def is_gone(self, host: Host) -> bool:
        return not host.at(self.path).exists()


@dataclass(frozen=True, slots=True)
class Service:
    """Enabled and, on a live host, running."""

    name: str

    def describe(self) -> str:
        return f"service {self.name}, enabled and started"

    def _systemctl(self, host: Host) -> list[str]:
        return ["systemctl"] if host.is_live else ["systemctl", f"--root={host.root}"]

    def is_made(self, host: Host) -> bool:
        is_enabled = host.ask([*self._systemctl(host), "is-enabled", self.name]).returncode == 0
        if not host.is_live:
            return is_enabled
        needs_reload = "NeedDaemonReload=yes" in host.ask(["systemctl", "show", self.name]).stdout
        return is_enabled and not needs_reload and self._is_active(host)

    def _is_active(self, host: Host) -> bool:
        return host.ask(["systemctl", "is-active", "--quiet", self.name]).returncode == 0

    def make(self, host: Host) -> None:
        if host.is_live:
            host.run(["systemctl", "daemon-reload"])
        host.run([*self._systemctl(host), "enable", "--quiet", self.name])
        if host.is_live:
            host.run(["systemctl", "restart", self.name])

    def undo(self, host: Host) -> None:
        if host.is_live:
            host.run(["systemctl", "stop", self.name])
        host.run([*self._systemctl(host), "disable", "--quiet", self.name])

    def is_gone(self, host: Host) -> bool:
        is_enabled = host.ask([*self._systemctl(host), "is-enabled", self.name]).returncode == 0
        return not is_enabled and not (host.is_live and self._is_active(host))


def require_root(host: Host, *, booted: Path = Path("/run/systemd/system")) -> None:
    """Root, on a host that systemd started (sd_booted(3)), or a staging folder. Raises HostChangeError."""
    if host.is_live and os.geteuid() != 0:
        raise HostChangeError("installing services needs root", next_step="run it with sudo")
    if host.is_live and not booted.is_dir():
        raise HostChangeError(
            "this host was not started by systemd",
            next_step="run `python -m config`, `python -m node` and `python -m ztunnel` by other means, "
            "or write to a staging folder with --root DIR",
        )
