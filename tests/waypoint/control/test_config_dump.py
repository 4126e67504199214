"""What a dump of the configuration leaves out."""

from __future__ import annotations

import json

from proto.mycelia import waypoint_pb2 as pb
from waypoint.control.config_dump import without_keys_of


def test_private_keys_are_in_no_dump() -> None:
    tls = pb.ClientTls(server_name="a", names=["a"], chain_pem="chain", key_pem="very-secret")
    policy = pb.TrafficPolicy(tls=tls)
    destination = pb.Destination(
        namespace="shop",
        hostname="web",
        policy=policy,
        port_policies={80: policy},
        subsets=[pb.Subset(name="v1", policy=policy, port_policies={81: policy})],
    )
    text = json.dumps(without_keys_of(destination))
    assert "very-secret" not in text
    assert text.count("[redacted]") == 4
    assert text.count('"chain"') == 4
