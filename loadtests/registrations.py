"""`python -m loadtests.registrations`: what judging the registrations of many nodes costs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from config.nodes.registrations import Registrations, State
from config.objects import Kind, Meta, Namespace, Ref, RegistrationPolicy
from config.registry.capture import Attached, Registration
from config.registry.registry import Registry
from config.settings import MeshSettings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.registrations", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--workloads", type=int, default=100, help="on each node, at most 250")
    options = parser.parse_args()
    registry = Registry(MeshSettings())
    ref = Ref(Kind.REGISTRATION_POLICY.value, "shop", "all")
    policy = RegistrationPolicy(Meta(ref), ("*",), ("web",), ("10.0.0.0/8",), {"app": ("*",)})
    space = Namespace(Meta(Ref(Kind.NAMESPACE.value, "", "shop")))
    registry.apply({ref: policy, space.meta.ref: space})
    book = Registrations(registry)
    for node in range(options.nodes):
        book.report(f"n{node}", [workload(node, each) for each in range(options.workloads)], 0.0)
    show("the first time", book.settle)
    counted = sum(claim.verdict.state is State.REGISTERED for claim in book.claims())
    show("again, nothing changed", book.settle)
    book.report("n0", [workload(0, each) for each in range(options.workloads - 1)], 0.0)
    show("one workload has ended", lambda: book.settle("n0"))
    print(f"{counted} registered on {options.nodes} nodes")


def workload(node: int, number: int) -> Attached:
    name, address = f"w{node}-{number}", f"10.{node // 250}.{node % 250}.{number % 250 + 1}"
    said = Registration({"app": "web"})
    return Attached(f"shop/{name}", "shop", name, "web", (address,), True, registration=said)


def show(what: str, work: Callable[[], object]) -> None:
    begun = time.perf_counter()
    work()
    print(f"{what}: {(time.perf_counter() - begun) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
