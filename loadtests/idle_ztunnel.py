"""What one ztunnel weighs that has nothing to do: control process and worker, resident, in all."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from loadtests.certificates import Credentials
from loadtests.contestants import listens, program
from loadtests.processes import family, resident_bytes
from loadtests.topology import Pair

SETTLE_S = 2.0
ADMIN_PORT = 15000


async def resident(pair: Pair, credentials: Credentials, directory: Path, workers: int) -> tuple[int, int]:
    """(bytes, processes) of `python -m ztunnel` without a control plane, in the pair's client namespace."""
    environment = {
        "XDS_ADDRESS": "",
        "CA_ADDRESS": "127.0.0.1:1",
        "CA_ROOT_CA": str(credentials.roots_path),
        "NODE_NAME": "bench",
        "INPOD_UDS": str(directory / "no-agent.sock"),
        "MYCELIA_STATE_DIR": str(directory / "ztunnel-state"),
        "ZTUNNEL_WORKER_THREADS": str(workers),
    }
    settings = [f"{key}={value}" for key, value in environment.items()]
    command = pair.in_client(["env", *settings, sys.executable, "-m", "ztunnel"])
    log = directory / "ztunnel-idle.log"
    async with program(command, log, listens(ADMIN_PORT)) as process:
        await trio.sleep(SETTLE_S)
        return resident_bytes([process.pid]), len(family([process.pid]))
