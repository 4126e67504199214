"""Starts node agents quickly: `python -m tests.kit.agent_zygote ARGUMENTS` imports it once, then forks.

Each line on standard input is a point of node/faults.py (or empty) and starts an agent that ends there; its
end is told in a line with its exit status, negative for a signal. The agents are processes like any other,
but what their self-test of the rules learns is learnt once.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import ClassVar

from node import __main__ as agent
from node import app, faults
from node.kernel import Redirection, find_programs
from node.rules import RuleOptions


class TestedRedirection(Redirection):
    tested: ClassVar[Redirection]

    def self_test(self) -> None:
        self._expected = self.tested._expected


def main() -> None:
    sys.argv[0] = "node"
    TestedRedirection.tested = Redirection(find_programs(), RuleOptions())
    TestedRedirection.tested.self_test()
    vars(app)["Redirection"] = TestedRedirection
    gc.freeze()
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
