"""Idle tunnels (trio): opens, proves by one byte, holds or cycles them. `python -m loadtests.tunnels`.

Talks with its parent by lines: writes `open N` when all are open and then waits for the end of its standard
input before it closes them; with `--cycles` it opens and closes that often first and writes `cycle I`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from loadtests.protocol import Mode, encode

OPENING_AT_ONCE = 64
GIVE_UP_S = 60.0


@asynccontextmanager
async def open_tunnels(host: str, port: int, number: int) -> AsyncIterator[list[trio.SocketStream]]:
    """Holds `number` connections open, each proven by one echoed byte; closes them all on the way out.

    Raises OSError or BrokenResourceError (in a group) when one does not open, TooSlowError after a minute.
    """
    streams: list[trio.SocketStream] = []
    gate = trio.CapacityLimiter(OPENING_AT_ONCE)

    async def open_one() -> None:
        async with gate:
            stream = await trio.open_tcp_stream(host, port)
            streams.append(stream)
            await stream.send_all(encode(Mode.ECHO) + b"?")
            if await stream.receive_some(1) != b"?":
                raise trio.BrokenResourceError("the tunnel did not echo")

    try:
        with trio.fail_after(GIVE_UP_S):
            async with trio.open_nursery() as nursery:
                for _ in range(number):
                    nursery.start_soon(open_one)
        yield streams
    finally:
        for stream in streams:
            stream.socket.close()


async def hold(host: str, port: int, number: int, cycles: int) -> None:
    for cycle in range(cycles):
        async with open_tunnels(host, port, number):
            pass
        print(f"cycle {cycle + 1}", flush=True)
    async with open_tunnels(host, port, 0 if cycles else number):
        print(f"open {number}", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.tunnels", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("number", type=int)
    parser.add_argument("--cycles", type=int, default=0)
    options = parser.parse_args()
    failure: BaseException | None = None
    try:
        trio.run(hold, options.host, options.port, options.number, options.cycles)
    except* (OSError, trio.BrokenResourceError, trio.TooSlowError) as group:
        failure = group
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if failure is not None:
        print(f"failed {failure}", flush=True)
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
