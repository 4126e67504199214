"""`python -m loadtests.attacks`: what other clients of a waypoint notice of a flood.

A bystander asks at a fixed rate through tunnel, waypoint and tunnel, first in peace, then beside one attacker
after another, each of which is cut off and comes again until its time is over. Figures: the bystander's p99
beside the attack as a ratio to its p99 in peace just before, its failures, and the largest resident size of
the waypoint's worker. The attacker's and the bystander's own processes need CPU of the same machine: on few
cores a part of the ratio is theirs, so `burn`, an attacker that only uses up CPU, is measured as well.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.table import Table

from loadtests import certificates
from loadtests.bench import REASONS, RESULTS, first_leaf, machine
from loadtests.processes import resident_bytes
from loadtests.redirect import HBONE_PORT
from loadtests.topology import inside
from loadtests.waypoint import mycelia, site
from loadtests.waypoint.backends import backends
from loadtests.waypoint.generator import GeneratorError, percentiles
from loadtests.waypoint.protection import Issuer
from loadtests.waypoint.site import Site
from mesh.lab.private import enter_private_namespace
from tests.kit.attacks import FLOODS, HTTP1_ATTACKS

CLIENTS: Final = 16
RATE_OF_ONE: Final = 40  # requests/s
LIMIT: Final = 2.0
MOST_MB: Final = 150.0
LOOK_EVERY_S: Final = 0.05
BURN: Final = (
    "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass\nprint(0, 0)"
)
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Attack:
    """`way` as the attacker's command names it; `burn` attacks nobody."""

    way: str
    kind: str


ATTACKS: Final = (
    Attack("burn", "CPU only"),
    *(Attack("tunnel", kind) for kind in FLOODS),
    *(Attack("http2", kind) for kind in FLOODS),
    *(Attack("http1", kind) for kind in HTTP1_ATTACKS),
)


@dataclass(frozen=True, slots=True)
class Found:
    attack: Attack
    calm_p99_us: float
    p99_us: float
    failed: int
    peak_bytes: int
    connections: int
    sent_bytes: int

    @property
    def ratio(self) -> float:
        return self.p99_us / self.calm_p99_us if self.calm_p99_us else 0.0

    @property
    def holds(self) -> bool:
        is_light = self.peak_bytes <= MOST_MB * 1e6
        return self.attack.way == "burn" or (self.ratio <= LIMIT and not self.failed and is_light)


async def ask(place: Site, directory: Path, seconds: float) -> tuple[float, int]:
    """The bystander: p99 in microseconds, and how many requests failed."""
    log = directory / "bystander.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "--h1", "-t", "1", "-c", str(CLIENTS), "--rps", str(RATE_OF_ONE)]
    command += ["-n", str(int(CLIENTS * RATE_OF_ONE * seconds)), f"--log-file={log}", f"http://{place.vip}/"]
    done = await trio.run_process(
        inside(place.client, command), capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0 or not log.exists():
        raise GeneratorError(done.stdout.decode(errors="replace")[-500:])
    failed = sum(1 for line in log.read_text().splitlines() if line.split()[1] != "200")
    return percentiles(log)[1], failed


def attacker_command(attack: Attack, place: Site, seconds: float, leaf: certificates.Leaf) -> list[str]:
    if attack.way == "burn":
        return [sys.executable, "-c", BURN.format(seconds=seconds)]
    is_tunnel = attack.way == "tunnel"
    peer = (place.waypoint_ip, HBONE_PORT) if is_tunnel else (place.vip, 80)
    command = [sys.executable, "-m", "loadtests.attacks.attacker", attack.way, attack.kind]
    command += [peer[0], str(peer[1]), str(seconds)]
    if is_tunnel:
        command += [str(leaf.chain_path), str(leaf.key_path)]
    # The waypoint's namespace has no redirection: from there an attacker can speak to port 15008 by itself.
    return inside(place.waypoint if is_tunnel else place.client, command)


async def under(
    attack: Attack, place: Site, pid: int, directory: Path, leaf: certificates.Leaf, seconds: float
) -> Found:
    """Peace first, then the attack."""
    calm, _ = await ask(place, directory, seconds)
    peak = resident_bytes([pid])
    p99, failed = 0.0, 0
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, resident_bytes([pid]))
                await trio.sleep(LOOK_EVERY_S)

        async def bystander() -> None:
            nonlocal p99, failed
            await trio.sleep(0.3)  # the attacker is at work
            p99, failed = await ask(place, directory, seconds)

        nursery.start_soon(watch)
        nursery.start_soon(bystander)
        command = attacker_command(attack, place, seconds + 1.0, leaf)
        done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
        connections, sent = (int(word) for word in done.stdout.split()[-2:])
        while not p99:
            await trio.sleep(LOOK_EVERY_S)
        nursery.cancel_scope.cancel()
    return Found(attack, calm, p99, failed, peak, connections, sent)


async def run(options: argparse.Namespace, directory: Path, console: Console) -> list[Found]:
    credentials = certificates.make(directory)
    place = Site("mycelia", 1)
    await trio.to_thread.run_sync(partial(site.build, place, is_redirected=True))
    found = []
    async with backends(place, directory), mycelia.running(place, credentials, directory, Issuer()) as pids:
        await ask(place, directory, options.duration)  # warm
        for attack in ATTACKS:
            if options.only and options.only not in f"{attack.way} {attack.kind}":
                continue
            with console.status(f"{attack.way}: {attack.kind}"):
                one = await under(attack, place, pids[-1], directory, credentials.client, options.duration)
            found.append(one)
    return found


HEADING: Final = (
    "way",
    "attack",
    "connections",
    "MB sent",
    "p99 in peace, us",
    "p99, us",
    "ratio",
    "failed",
    "worker's peak, MB",
    "",
)


def row(one: Found) -> list[str]:
    verdict = "" if one.attack.way == "burn" else "pass" if one.holds else "FAIL"
    return [
        one.attack.way,
        one.attack.kind,
        str(one.connections),
        f"{one.sent_bytes / 1e6:.0f}",
        f"{one.calm_p99_us:.0f}",
        f"{one.p99_us:.0f}",
        f"{one.ratio:.2f}",
        str(one.failed),
        f"{one.peak_bytes / 1e6:.0f}",
        verdict,
    ]


def report(found: Sequence[Found], console: Console, arguments: Sequence[str], *, is_written: bool) -> None:
    table = Table(*HEADING)
    for one in found:
        table.add_row(*row(one))
    console.print(table)
    if not is_written:
        return
    lines = [f"\n## {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC: floods beside other clients\n"]
    lines.append(f"Command: `{shlex.join(['python', '-m', 'loadtests.attacks', *arguments])}`\n")
    lines += [f"- {key}: {value}" for key, value in machine("cubic (by route)", 1, None).items()]
    lines += ["", f"| {' | '.join(HEADING)} |", "|---" * len(HEADING) + "|"]
    lines += [f"| {' | '.join(row(one))} |" for one in found]
    with RESULTS.open("a") as file:
        file.write("\n".join(lines) + "\n")


def main() -> int:
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(prog="python -m loadtests.attacks", description=__doc__)
    parser.add_argument("--duration", type=float, default=3.0, metavar="S")
    parser.add_argument("--only", default="", help="a part of `WAY KIND`")
    parser.add_argument("--write-results", action="store_true", help=f"append a section to {RESULTS.name}")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        enter_private_namespace(sys.orig_argv)
        with tempfile.TemporaryDirectory(prefix="mycelia-bench-", dir="/run") as scratch:
            found = trio.run(run, options, Path(scratch).resolve(), console)
    except KeyboardInterrupt:
        return 130
    except (*REASONS, GeneratorError, BaseExceptionGroup) as error:
        leaf = first_leaf(error)
        if not isinstance(leaf, (*REASONS, GeneratorError)):
            raise
        console.print(f"[red]{leaf}[/]")
        return 2
    report(found, console, arguments, is_written=options.write_results)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
