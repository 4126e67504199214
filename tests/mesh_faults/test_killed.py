"""Processes of a mesh that carries traffic are killed (SIGKILL) and come back (ARCHITECTURE, Failure)."""

from __future__ import annotations

import json
import os
import signal

import pytest

from mesh.lab.network import Workload
from tests.kit.mesh import Mesh, namespace
from tests.mesh_faults.traffic import PORT, Scene, can_talk, echoes, echoing, ended, has_ended

pytestmark = pytest.mark.namespaces


class TestControlPlane:
    def test_open_connections_go_on_and_new_ones_work_without_it(self, scene: Scene) -> None:
        with scene.connect() as sock:
            scene.kill_control_plane()
            assert echoes(sock)
            for _ in range(5):
                assert scene.can_talk()
            assert all(scene.mesh.is_ready(name) for name in scene.mesh.nodes)
            scene.mesh.start_control_plane()
            assert echoes(sock), "its return cuts nothing"

    def test_what_changed_meanwhile_arrives_after_its_return(self, scene: Scene) -> None:
        mesh = scene.mesh
        with scene.connect() as sock:
            scene.kill_control_plane()
            mesh.apply("deny-meanwhile", deny_from(scene.client))
            assert scene.can_talk(), "nobody knows the policy yet"
            mesh.start_control_plane()
            assert has_ended(sock)
            mesh.wait("the policy to hold", scene.is_refused)
            scene.kill_control_plane()
            mesh.withdraw("deny-meanwhile")
            assert scene.is_refused()
            mesh.start_control_plane()
            mesh.wait("the policy to be gone", scene.can_talk)

    def test_captured_workloads_never_look_uncaptured(self, scene: Scene) -> None:
        """Not even while the agents are away too and cannot report again: it keeps on disk what they said."""
        mesh = scene.mesh
        for node in mesh.nodes:
            scene.kill_agent(node)
        scene.kill_control_plane()
        with mesh.lab.capture("alpha") as wire:
            mesh.start_control_plane()
            mesh.apply("sign", namespace("sign", is_ambient=False), service_of(scene.server))
            seen: set[str] = set()

            def has_arrived() -> bool:
                seen.update(*(scene.protocols(node, scene.server) for node in mesh.nodes))
                dumps = [mesh.config_dump(node) for node in mesh.nodes]
                return all("sign.default.svc" in json.dumps(dump and dump["services"]) for dump in dumps)

            mesh.wait("resources of the new control plane", has_arrived)
            assert seen == {"HBONE"}
            assert scene.can_talk()
            assert PORT not in wire.destination_ports()
        mesh.withdraw("sign")


class TestWorker:
    def test_only_its_own_connections_are_lost(self, scene: Scene) -> None:
        mesh = scene.mesh
        bystander = mesh.add("bystander", "beta")
        (worker,) = scene.workers("alpha")
        with mesh.connect(bystander, (scene.server.ipv4, PORT)) as other, scene.connect() as sock:
            assert echoes(other)
            os.kill(worker, signal.SIGKILL)
            assert has_ended(sock)
            assert echoes(other), "a connection that never touched this worker"
            mesh.wait("traffic to flow again", scene.can_talk)
            assert echoes(other)
        mesh.wait("another worker", lambda: scene.workers("alpha") not in ([], [worker]))
        mesh.await_ready("alpha")

    def test_counters_do_not_go_backwards(self, scene: Scene) -> None:
        for _ in range(3):
            assert scene.can_talk()
        before = counters(scene.mesh, "beta")
        assert any(name.startswith("istio_tcp_connections_opened_total") for name in before)
        (worker,) = scene.workers("beta")
        os.kill(worker, signal.SIGKILL)
        scene.mesh.wait("traffic to flow again", scene.can_talk)
        after = counters(scene.mesh, "beta")
        assert {name: value for name, value in before.items() if after.get(name, -1) < value} == {}
        assert after["mycelia_worker_losses_total"] == before["mycelia_worker_losses_total"] + 1

    def test_one_that_dies_again_and_again_is_restarted_later_and_later(self, scene: Scene) -> None:
        mesh = scene.mesh
        log = mesh.nodes["alpha"].ztunnel_logs[-1]
        known = len(scene.log_events(log, "worker_lost"))
        for _ in range(3):
            (worker,) = mesh.wait("a worker", lambda: scene.workers("alpha"))
            with ended(worker) as end:
                os.kill(worker, signal.SIGKILL)
                assert end.poll(10_000)
            mesh.wait("a new one", lambda old=worker: scene.workers("alpha") not in ([], [old]))  # type: ignore[misc]
        waits = [float(each["restart_s"]) for each in scene.log_events(log, "worker_lost")[known:]]
        assert len(waits) == 3
        assert waits[1] == min(waits[0] * 2, 15.0)
        assert waits[2] == min(waits[1] * 2, 15.0)


class TestZtunnel:
    def test_its_workers_serve_what_is_open_and_take_nothing_new(self, scene: Scene) -> None:
        mesh = scene.mesh
        (orphan,) = scene.workers("alpha")
        with ended(orphan) as end:
            with scene.connect() as sock, mesh.lab.capture("alpha") as wire:
                scene.end_ztunnel("alpha")
                mesh.wait("new connections to be refused", scene.is_refused)
                assert echoes(sock)
                mesh.start_ztunnel("alpha")
                mesh.wait("traffic through the new one", scene.can_talk)
                assert echoes(sock), "the old worker still serves it"
                assert not end.poll(0)
                assert PORT not in wire.destination_ports(), "nothing left in plaintext"
            assert end.poll(10_000), "the old worker ends with its last connection"

    def test_on_the_receiving_node_too(self, scene: Scene) -> None:
        mesh = scene.mesh
        with scene.connect() as sock:
            scene.end_ztunnel("beta")
            assert echoes(sock)
            mesh.start_ztunnel("beta")
            mesh.await_ready("beta")
            mesh.wait("traffic through the new one", scene.can_talk)
            assert echoes(sock)

    def test_started_while_the_control_plane_is_away(self, scene: Scene) -> None:
        """It serves by what it has on disk and has no certificates: what needs one is refused by name; what
        needs none is let through.
        """
        mesh = scene.mesh
        plain = mesh.add("plain", "beta", is_attached=False)
        mesh.wait("the state to be saved", lambda: has_saved(mesh, "alpha", plain.name))
        scene.kill_control_plane()
        scene.end_ztunnel("alpha")
        mesh.start_ztunnel("alpha")
        mesh.await_ready("alpha")
        assert scene.protocols("alpha", scene.server) == {"HBONE"}
        with mesh.lab.capture("alpha") as wire:
            assert scene.is_refused()
            assert PORT not in wire.destination_ports()
        with echoing(mesh, plain):
            assert can_talk(mesh, scene.client, plain), (
                "plaintext to an uncaptured workload needs no identity"
            )
        identity = f"spiffe://cluster.local/ns/default/sa/{scene.client.name}"
        assert scene.wait_error("alpha", f"no certificate for {identity}")
        mesh.start_control_plane()
        mesh.wait("traffic to flow again", scene.can_talk)


class TestAgent:
    def test_capture_stays_and_traffic_flows(self, scene: Scene) -> None:
        with scene.connect() as sock:
            scene.kill_agent("alpha")
            scene.kill_agent("beta")
            assert echoes(sock)
            assert scene.can_talk()
            assert rules_of(scene.mesh, scene.client) != ""
            scene.heal()
            assert echoes(sock)
        with scene.mesh.agent("alpha") as agent:
            agent.wait(f"default/{scene.client.name}", timeout_s=10)

    @pytest.mark.parametrize("when", ["at once", "with rules"])
    def test_killed_while_it_captures_and_while_it_releases(self, scene: Scene, when: str) -> None:
        """The next one finishes the work, in both directions, and leaves no residue."""
        mesh = scene.mesh
        mesh.apply("later", namespace("later", is_ambient=True))
        workload = mesh.add("moving", "beta", namespace="later", is_attached=False)
        uid = f"later/{workload.name}"
        with mesh.agent("beta") as agent:
            agent.attach("later", workload.name, workload.name, ("path", str(workload.path)))
        if when == "with rules":
            mesh.wait("rules", lambda: rules_of(mesh, workload))
        scene.kill_agent("beta")
        mesh.start_agent("beta")
        with mesh.agent("beta") as agent:
            agent.wait(uid, timeout_s=15)
        with echoing(mesh, workload), mesh.lab.capture(workload) as wire:
            mesh.wait("HBONE", lambda: scene.protocols("alpha", workload) == {"HBONE"})
            mesh.wait("traffic", lambda: can_talk(mesh, scene.client, workload))
            assert PORT not in wire.destination_ports()

        mesh.apply("later", namespace("later", is_ambient=False))
        if when == "with rules":
            mesh.wait("TCP", lambda: scene.protocols("alpha", workload) == {"TCP"})
        scene.kill_agent("beta")
        mesh.start_agent("beta")
        with mesh.agent("beta") as agent:
            agent.wait(uid, is_captured=False, timeout_s=15)
        mesh.wait("the rules to go", lambda: rules_of(mesh, workload) == "")
        assert mesh.lab.run(workload, ["ip", "rule", "list", "table", "100"]).stdout == ""
        assert mesh.lab.run(workload, ["ip", "route", "show", "table", "100"], check=False).stdout == ""
        with echoing(mesh, workload):
            mesh.wait("plaintext", lambda: can_talk(mesh, scene.client, workload))
        mesh.withdraw("later")


def deny_from(workload: Workload) -> dict[str, object]:
    principal = f"cluster.local/ns/default/sa/{workload.name}"
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny-meanwhile", "namespace": "default"},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]},
    }


def service_of(workload: Workload) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sign", "namespace": "default"},
        "spec": {
            "clusterIP": "10.96.7.7",
            "selector": {"app": workload.name},
            "ports": [{"name": "tcp", "port": 80, "targetPort": PORT}],
        },
    }


def counters(mesh: Mesh, node: str) -> dict[str, float]:
    """All of a node's counters, by name and labels."""
    lines = [line for line in mesh.metrics(node).splitlines() if not line.startswith("#")]
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {name: float(value) for name, value in pairs if name.partition("{")[0].endswith("_total")}


def has_saved(mesh: Mesh, node: str, name: str) -> bool:
    folder = mesh.nodes[node].folder / "ztunnel-state"
    return any(name.encode() in path.read_bytes() for path in folder.glob("[!.]*") if path.is_file())


def rules_of(mesh: Mesh, workload: Workload) -> str:
    return mesh.lab.run(workload, ["nft", "list", "ruleset"]).stdout
