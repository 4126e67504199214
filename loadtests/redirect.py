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
    redirection = Redirection(find_programs(), RuleOptions())
    redirection.self_test()
    for name in (pair.client_namespace, pair.server_namespace):
        with NetworkNamespace.from_path(str(topology.namespace_path(name))) as namespace:
            redirection.apply(namespace)
    topology.set_congestion_control([pair])  # for the new routes
