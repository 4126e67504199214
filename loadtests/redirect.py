"""The node agent's own redirection rules in both namespaces of a pair.

Every contestant that proxies gets them: address translation and connection tracking cost the kernel time for
each packet and connection, so a proxy that is handed its connections for free would be measured doing less.
"""

from __future__ import annotations

from loadtests import topology
from loadtests.topology import Pair
from node.kernel import Redirection, find_programs
from node.rules import RuleOptions
from transport.netns import NetworkNamespace

CAPTURE_PORT = 15001  # where the rules lead connections that leave a workload
HBONE_PORT = 15008  # what they leave alone
MARK = 0x539  # of the proxy's own sockets, which must not be captured again


def redirect(pair: Pair) -> None:
    """Blocking; raises what the node agent raises where rules cannot be made."""
    redirect_in(pair.client_namespace, pair.server_namespace)
    topology.set_congestion_control([pair])  # for the new routes


def redirect_in(*namespaces: str) -> None:
    """The rules alone, in namespaces by name."""
    redirection = Redirection(find_programs(), RuleOptions())
    redirection.self_test()
    for name in namespaces:
        with NetworkNamespace.from_path(str(topology.namespace_path(name))) as namespace:
            redirection.apply(namespace)
