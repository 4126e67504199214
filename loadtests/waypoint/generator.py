"""Loads made by h2load (nghttp2), which speaks both HTTP versions and is far from being the bottleneck."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import trio

from loadtests.processes import cpu_seconds
from loadtests.topology import inside
from loadtests.waypoint.backends import GRPC_MESSAGE, GRPC_PATH
from loadtests.waypoint.site import Site

_RATE = re.compile(r"finished in [\d.]+m?s, ([\d.]+) req/s")
_DONE = re.compile(
    r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored"
)


class GeneratorError(Exception):
    """h2load said something else than a result."""


@dataclass(frozen=True, slots=True)
class Load:
    """`port` is the service's; `streams` is per connection, with HTTP/2."""

    name: str
    port: int
    connections: int
    streams: int = 1
    is_http2: bool = False
    is_grpc: bool = False
    service: str = "shop"
    headers: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Measured for Mycelia alone: it is compared with another of its own loads."""
        return self.service != "shop"


@dataclass(frozen=True, slots=True)
class Measured:
    """Times in microseconds. `cpu_us` is what the contestant's processes used for each request."""

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float
    failed: int


async def measure(
    load: Load, site: Site, host: str, port: int, pids: tuple[int, ...], *, duration_s: float, directory: Path
) -> Measured:
    """One run from the site's client namespace. Raises GeneratorError."""
    log = directory / f"{site.name}-{load.name}.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-t", "1", "-c", str(load.connections), "-m", str(load.streams)]
    command += ["-D", f"{duration_s * 1000:.0f}ms", "--warm-up-time", "500ms", f"--log-file={log}"]
    if not load.is_http2:
        command.append("--h1")
    for header in load.headers:
        command += ["-H", header]
    path = "/"
    if load.is_grpc:
        message = directory / "message"
        message.write_bytes(GRPC_MESSAGE)
        command += ["-d", str(message), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        path = GRPC_PATH
    before, begun = cpu_seconds(pids), trio.current_time()
    done = await trio.run_process(
        inside(site.client, [*command, f"http://{host}:{port}{path}"]),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    share = (cpu_seconds(pids) - before) / (trio.current_time() - begun)
    text = done.stdout.decode(errors="replace")
    rate, counts = _RATE.search(text), _DONE.search(text)
    if rate is None or counts is None or done.returncode != 0:
        raise GeneratorError(f"{load.name}: {text.strip()[-500:]}")
    per_second = float(rate[1])
    # A timed run ends with requests in flight, one for each stream: they are not failures.
    failed = max(0, int(counts[4]) + int(counts[5]) - load.connections * load.streams)
    p50, p99 = percentiles(log)
    return Measured(per_second, p50, p99, share / per_second * 1e6 if per_second else 0.0, failed)


def percentiles(log: Path) -> tuple[float, float]:
    """From h2load's log: begin, status and duration of each request, in microseconds."""
    times = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    if not times:
        return 0.0, 0.0
    return float(times[len(times) // 2]), float(times[min(len(times) - 1, len(times) * 99 // 100)])
