"""Who is measured: nothing between generator and server, the Envoy pair, and Mycelia's two workers.

A contestant starts its processes for the length of an `async with` and then has a target to send loads to.
Fairness: the same pair layout, certificates of the same kind, one worker thread (Envoy) or worker process
(Mycelia) on each side unless asked otherwise, no access log on either.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from loadtests.certificates import Credentials
from loadtests.envoy import template
from loadtests.redirect import CAPTURE_PORT, HBONE_PORT, redirect
from loadtests.topology import Pair

SERVER_PORT = 9000
READY_S = 30.0
LOOK_EVERY_S = 0.05
STOP_S = 5.0


class ContestantError(Exception):
    """A contestant's process did not come up, or ended; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant that carries load: where to connect to, from the pair's client namespace."""

    host: str
    port: int
    pair: Pair
    client_pids: tuple[int, ...] = ()
    server_pids: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        return self.client_pids + self.server_pids


class Contestant(Protocol):
    """Enters `running()` when loads can be sent; its processes end with the block."""

    @property
    def name(self) -> str: ...

    def running(self) -> AbstractAsyncContextManager[Running]: ...


@asynccontextmanager
async def program(
    command: list[str], log: Path, is_ready: Callable[[int], bool]
) -> AsyncIterator[trio.Process]:
    """Runs a program until the block ends; enters the block when it is ready. Its output goes to `log`."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with trio.move_on_after(READY_S) as patience:
            while not is_ready(process.pid):
                if process.poll() is not None:
                    raise ContestantError(
                        f"{command[-1]} ended with status {process.returncode}: {tail(log)}"
                    )
                await trio.sleep(LOOK_EVERY_S)
        if patience.cancelled_caught:
            raise ContestantError(f"not ready after {READY_S:.0f} s: {' '.join(command)}: {tail(log)}")
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)


async def stop(process: trio.Process) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with trio.move_on_after(STOP_S):
        await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip() or "no output"


def listens(port: int) -> Callable[[int], bool]:
    """Whether something listens on the port in the network namespace of the asked process."""

    def look(pid: int) -> bool:
        return is_listening(pid, port)

    return look


def is_listening(pid: int, port: int) -> bool:
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
        for line in lines:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":  # LISTEN
                return True
    return False


@asynccontextmanager
async def load_server(pair: Pair, directory: Path) -> AsyncIterator[trio.Process]:
    command = [sys.executable, "-m", "loadtests.server", "--listen", f"0.0.0.0:{SERVER_PORT}"]
    log = directory / f"{pair.name}-server.log"
    async with program(pair.in_server(command), log, listens(SERVER_PORT)) as process:
        yield process


@dataclass(frozen=True, slots=True)
class Direct:
    """Nothing in between: what generator and server can do, the ceiling of every other figure."""

    pair: Pair
    name: str = "direct"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        yield Running(self.pair.server_ip, SERVER_PORT, self.pair)
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class EnvoyPair:
    """Two Envoys behind the same redirection as Mycelia: TCP in, CONNECT over mutual TLS, TCP out from the
    address of the client.
    """

    pair: Pair
    credentials: Credentials
    directory: Path
    binary: Path
    concurrency: int = 1
    name: str = "envoy"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        pair, credentials = self.pair, self.credentials
        await trio.to_thread.run_sync(redirect, pair)
        inbound = template.inbound(
            listen=(pair.server_ip, HBONE_PORT),
            target=(pair.server_ip, SERVER_PORT),
            leaf=credentials.server,
            roots=credentials.roots_path,
            trusted_prefix="spiffe://cluster.local/",
        )
        outbound = template.outbound(
            listen=("127.0.0.1", CAPTURE_PORT),
            peer=(pair.server_ip, HBONE_PORT),
            authority=f"{pair.server_ip}:{SERVER_PORT}",
            leaf=credentials.client,
            roots=credentials.roots_path,
            peer_id=credentials.server.spiffe_id,
        )
        async with AsyncExitStack() as stack:
            pids = []
            for side, config, wrap, port in (
                ("inbound", inbound, pair.in_server, HBONE_PORT),
                ("outbound", outbound, pair.in_client, CAPTURE_PORT),
            ):
                path = self.directory / f"envoy-{side}.json"
                path.write_text(json.dumps(config, indent=1))
                command = [str(self.binary), "-c", str(path), "--concurrency", str(self.concurrency)]
                command += ["--disable-hot-restart", "--log-level", "warning"]
                log = self.directory / f"envoy-{side}.log"
                process = await stack.enter_async_context(program(wrap(command), log, listens(port)))
                pids.append(process.pid)
            yield Running(pair.server_ip, SERVER_PORT, pair, (pids[1],), (pids[0],))
