"""Starts node agents quickly: `python -m tests.kit.agent_zygote ARGUMENTS` imports it once, then forks.

Each line on standard input is a point of node/faults.py (or empty) and starts an agent that ends there; its
end is told in a line with its exit status, negative for a signal. The agents are processes like any other.
"""

from __future__ import annotations

import os
import sys

from node import __main__ as agent
from node import app, faults

__all__ = ["app", "main"]  # imported so that a fork need not


def main() -> None:
    sys.argv[0] = "node"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            faults._wanted = line.strip()
            os._exit(agent.main())
        print(f"started {pid}", flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
