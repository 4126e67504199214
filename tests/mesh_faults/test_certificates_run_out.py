"""The CA is away for longer than half of a certificate's life, and then for longer than all of it."""

from __future__ import annotations

import datetime as dt

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh
from tests.mesh_faults.traffic import Scene, can_talk, echoes, echoing

pytestmark = pytest.mark.namespaces

LIFETIME_S = 3  # certificates are dated back by two minutes: half of the life is over at once


def test_the_old_one_serves_to_its_end_then_new_tunnels_are_refused_by_name(scene: Scene) -> None:
    """Control plane and CA are one process here. Open connections are not cut by the end of a certificate."""
    mesh = scene.mesh
    late, later = mesh.add("late", "beta"), mesh.add("later", "beta")
    restart_with_short_certificates(scene)
    with (
        echoing(mesh, late),
        echoing(mesh, later),
        scene.connect() as sock,
        mesh.lab.capture("alpha") as wire,
    ):
        mesh.wait("a fresh certificate", lambda: remaining_s(mesh, scene.client) > LIFETIME_S / 2)
        scene.kill_control_plane()
        end = expiry(mesh, scene.client)
        assert end is not None
        assert can_talk(mesh, scene.client, late), "a new tunnel, with the old certificate"
        assert dt.datetime.now(dt.UTC) < end
        assert expiry(mesh, scene.client) == end
        mesh.wait("the end of the certificate", lambda: dt.datetime.now(dt.UTC) > end)

        assert not can_talk(mesh, scene.client, later), "a new tunnel to another workload"
        assert not can_talk(mesh, scene.client, late), "a new tunnel on a pooled connection"
        identity = f"spiffe://cluster.local/ns/default/sa/{scene.client.name}"
        assert scene.wait_error("alpha", f"no certificate for {identity}")
        assert echoes(sock), "what is open goes on"
        assert mesh.is_ready("alpha"), "one identity without a certificate is not the node's fault"
        log = mesh.nodes["alpha"].ztunnel_logs[-1]
        failures = scene.log_events(log, "credential_fetch_failed")
        assert [each["has_valid"] for each in failures] == sorted(
            (each["has_valid"] for each in failures), reverse=True
        )

        mesh.start_control_plane()
        mesh.wait("new tunnels", lambda: can_talk(mesh, scene.client, later))
        assert echoes(sock)
        assert wire.destination_ports() <= {15008}


def restart_with_short_certificates(scene: Scene) -> None:
    """The ztunnel of alpha, asking for certificates of LIFETIME_S seconds."""
    scene.end_ztunnel("alpha")
    scene.mesh.start_ztunnel("alpha", SECRET_TTL=f"{LIFETIME_S}s")
    scene.mesh.await_ready("alpha")
    scene.mesh.wait("traffic to flow", scene.can_talk)


def expiry(mesh: Mesh, workload: Workload) -> dt.datetime | None:
    """When the certificate that alpha holds for the workload ends; None where it has none that is valid."""
    dump = mesh.config_dump("alpha")
    assert dump is not None
    for each in dump["certificates"]:
        if each["identity"].endswith(f"/{workload.name}") and each["certChain"]:
            return dt.datetime.fromisoformat(each["certChain"][0]["expirationTime"])
    return None


def remaining_s(mesh: Mesh, workload: Workload) -> float:
    end = expiry(mesh, workload)
    return -1.0 if end is None else (end - dt.datetime.now(dt.UTC)).total_seconds()
