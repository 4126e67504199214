"""The control process for real: `python -m ztunnel` with its workers, between scripted peers."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dataplane.state.model import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.lab.network import Lab, Workload
from proto.istio import zds_pb2
from tests.dataplane.state.builders import address, workload
from tests.ztunnel.control.scripted_peers import ControlPlane, NodeAgent, ztunnel

pytestmark = pytest.mark.namespaces

APP = "spiffe://cluster.local/ns/default/sa/app"


@dataclass
class Bench:
    control_plane: ControlPlane
    agent: NodeAgent
    lab: Lab
    pod: Workload
    state_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.control_plane.port}"
        return {
            "XDS_ADDRESS": address,
            "CA_ADDRESS": address,
            "NODE_NAME": "n1",
            "INPOD_UDS": str(self.agent.path),
            "MYCELIA_STATE_DIR": str(self.state_dir),
            "AUTH_TOKEN": "secret-token",
        }

    def announce(self, uid: str, *ips: str, **fields: object) -> dict[str, tuple[str, bytes]]:
        name, value = address(workload(uid, *ips, node="n1", **fields))  # type: ignore[arg-type]
        return {name: ("1", value)}

    def may_connect(self, port: int) -> bool:
        """Is anybody listening in the pod's namespace?"""
        with self.lab.entered(self.pod), socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def bench(lab: Lab, tmp_path: Path) -> AsyncIterator[Bench]:
    (node,) = lab.add_nodes("alpha")
    pod = lab.add_workload("web", node)
    control_plane = ControlPlane(tmp_path / "ca")
    async with control_plane.running(), NodeAgent(tmp_path / "zds.sock") as agent:
        made = Bench(control_plane, agent, lab, pod, tmp_path / "state")
        control_plane.resources = {AUTHORIZATION_TYPE: {}, ADDRESS_TYPE: made.announce("web", pod.ipv4)}
        yield made


async def test_from_start_to_drain(bench: Bench) -> None:
    async with ztunnel(bench.environment) as proxy:
        agent = await bench.agent.accept()
        await proxy.until("worker_up")
        assert await proxy.readiness() == "not ready, pending: workload proxy manager"
        assert await agent.add("web", bench.pod.path) == ""
        assert await agent.end_snapshot() == ""
        await proxy.until("zds_snapshot_complete")
        assert await proxy.readiness() == "ready"
        assert all(bench.may_connect(port) for port in (15001, 15006, 15008))

        # The certificate was prefetched on arrival; the dump shows it and no secret.
        await bench.control_plane.certificates.until(lambda identity: identity == APP)
        await proxy.until("credential_ready")
        text = (await proxy.get(15000, "/config_dump"))[1]
        dump = json.loads(text)
        (certificate,) = dump["certificates"]
        assert (certificate["identity"], certificate["state"]) == (APP, "Available")
        assert certificate["certChain"]
        assert certificate["rootCerts"]
        assert dump["workloadState"]["web"]["state"] == "Up"
        assert [entry["uid"] for entry in dump["workloads"]] == ["web"]
        assert "PRIVATE KEY" not in text
        assert "secret-token" not in text

        # Its life, and to which root it leads.
        text = (await proxy.get(15000, "/certificates"))[1]
        (life,) = json.loads(text)["certificates"]
        assert (life["identity"], life["stage"], life["roots"]) == (APP, "good", 1)
        assert life["rootFingerprint"]
        assert "PRIVATE KEY" not in text
        assert (
            f'mycelia_certificate_remaining_seconds{{identity="{APP}"}}'
            in (await proxy.get(15020, "/metrics"))[1]
        )

        # Metrics, in both places.
        for path in ("/metrics", "/stats/prometheus"):
            status, metrics = await proxy.get(15020, path)
            assert status == 200
            assert "workload_manager_active_proxy_count 1\n" in metrics
            assert 'istio_build{component="ztunnel",tag=' in metrics
            assert metrics.endswith("# EOF\n")

        # Levels.
        assert (await proxy.get(15000, "/logging"))[0] == 405
        assert "debug" in (await proxy.get(15000, "/logging?level=debug", "POST"))[1]
        assert (await proxy.get(15000, "/logging?level=loud", "POST"))[0] == 400
        assert (await proxy.get(15000, "/quitquitquit"))[0] == 405
        assert (await proxy.get(15000, "/debug/tasks"))[0] == 200

        # The workload leaves: listeners, certificate.
        delete = zds_pb2.WorkloadRequest()
        getattr(delete, "del").uid = "web"
        assert await agent.ask(delete) == ""
        await bench.control_plane.push(ADDRESS_TYPE, {}, ("web",))
        await bench.control_plane.requests.until(lambda request: request.response_nonce == "3")
        assert json.loads((await proxy.get(15000, "/config_dump"))[1])["certificates"] == []
        assert not bench.may_connect(15008)

        assert (await proxy.get(15000, "/quitquitquit", "POST"))[1] == "shutdown now\n"
        assert await proxy.ended() == 0
        agent.sock.close()


async def test_a_killed_worker_is_replaced_and_serves_again(bench: Bench) -> None:
    async with ztunnel(bench.environment) as proxy:
        agent = await bench.agent.accept()
        await agent.add("web", bench.pod.path)
        await agent.end_snapshot()
        line = await proxy.until("worker_up")
        await proxy.until("workload_started")
        worker = int(line.rpartition("worker_pid=")[2])
        os.kill(worker, signal.SIGKILL)
        await proxy.until("worker_up", 2)
        with trio.fail_after(20):
            while await proxy.readiness() != "ready":
                await trio.lowlevel.checkpoint()
        assert bench.may_connect(15008)
        assert "mycelia_worker_losses_total 1\n" in (await proxy.get(15020, "/metrics"))[1]
        agent.sock.close()


async def test_starts_without_the_control_plane_from_what_was_saved(bench: Bench) -> None:
    async with ztunnel(bench.environment) as proxy:
        agent = await bench.agent.accept()
        await proxy.until("control_plane_synced")
        proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == 0
        agent.sock.close()
    away = {"XDS_ADDRESS": "http://127.0.0.1:1", "CA_ADDRESS": "http://127.0.0.1:1"}
    async with ztunnel({**bench.environment, **away}) as proxy:
        agent = await bench.agent.accept()
        assert await agent.add("web", bench.pod.path) == ""
        assert await agent.end_snapshot() == ""
        await proxy.until("zds_snapshot_complete")
        assert await proxy.readiness() == "ready"
        dump = json.loads((await proxy.get(15000, "/config_dump"))[1])
        assert [entry["uid"] for entry in dump["workloads"]] == ["web"]
        agent.sock.close()


async def test_what_went_away_meanwhile_is_removed_when_the_control_plane_is_back(bench: Bench) -> None:
    bench.control_plane.resources[ADDRESS_TYPE] |= bench.announce("gone", "10.99.0.1")
    async with ztunnel(bench.environment) as proxy:
        await proxy.until("control_plane_synced")
        proxy.signal(signal.SIGINT)
        assert await proxy.ended() == 0
    del bench.control_plane.resources[ADDRESS_TYPE]["gone"]
    async with ztunnel(bench.environment) as proxy:
        await proxy.until("control_plane_synced")
        first = await bench.control_plane.requests.until(
            lambda request: request.type_url == ADDRESS_TYPE and "gone" in request.initial_resource_versions
        )
        assert dict(first.initial_resource_versions) == {"web": "1", "gone": "1"}
        dump = json.loads((await proxy.get(15000, "/config_dump"))[1])
        assert [entry["uid"] for entry in dump["workloads"]] == ["web"]


async def test_bad_resources_are_refused_and_the_rest_is_used(bench: Bench) -> None:
    async with ztunnel(bench.environment) as proxy:
        await proxy.until("control_plane_synced")
        await bench.control_plane.push(
            ADDRESS_TYPE, {"bad": ("1", b"\xff\xff"), **bench.announce("good", "10.99.0.2")}
        )
        refused = await bench.control_plane.requests.until(lambda request: request.HasField("error_detail"))
        assert refused.error_detail.message.startswith("bad: ")
        dump = json.loads((await proxy.get(15000, "/config_dump"))[1])
        assert [entry["uid"] for entry in dump["workloads"]] == ["good", "web"]


async def test_an_agent_that_breaks_the_protocol_ends_the_process_with_one_message(bench: Bench) -> None:
    async with ztunnel(bench.environment) as proxy:
        agent = await bench.agent.accept()
        await agent.end_snapshot()
        assert "twice" in await agent.end_snapshot()
        assert await proxy.ended() == 1
        await proxy.events.until(lambda item: "MYC-4110" in item[2])
        agent.sock.close()
    assert not any("Traceback" in line for line in proxy.lines())


async def run_to_the_end(environment: dict[str, str], *prefix: str) -> tuple[int, list[str]]:
    async with ztunnel(environment, *prefix) as proxy:
        status = await proxy.ended()
    return status, proxy.lines()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"IPV6_ENABLED": "maybe"}, "IPV6_ENABLED is 'maybe'"),
        ({"PROXY_MODE": "dedicated"}, "PROXY_WORKLOAD_INFO"),
        ({"CRL_PATH": "/crl"}, "CRL_PATH"),
        ({"MYCELIA_STATS_PORT": "15000"}, "cannot open"),
    ],
)
async def test_wrong_settings_are_one_message(change: dict[str, str], expected: str) -> None:
    status, lines = await run_to_the_end({"XDS_ADDRESS": "http://127.0.0.1:1", **change})
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("ztunnel: ")
    assert expected in lines[0]


async def test_missing_privilege_is_one_message() -> None:
    status, lines = await run_to_the_end(
        {"XDS_ADDRESS": "http://127.0.0.1:1"}, "setpriv", "--bounding-set=-all", "--inh-caps=-all"
    )
    assert status == 1
    assert len(lines) == 1
    assert "may not enter network namespaces: Operation not permitted" in lines[0]


async def test_workers_go_on_when_the_control_process_is_killed(bench: Bench) -> None:
    """They keep what is open, stop accepting, and end by themselves."""
    async with ztunnel(bench.environment) as proxy:
        agent = await bench.agent.accept()
        await agent.add("web", bench.pod.path)
        line = await proxy.until("worker_up")
        worker = os.pidfd_open(int(line.rpartition("worker_pid=")[2]))
        proxy.signal(signal.SIGKILL)
        await proxy.ended()
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(worker)  # it has ended
        os.close(worker)
        agent.sock.close()


async def test_a_second_interrupt_ends_at_once(bench: Bench) -> None:
    async with ztunnel({**bench.environment, "CONNECTION_TERMINATION_DEADLINE": "1h"}) as proxy:
        agent = await bench.agent.accept()
        await agent.add("web", bench.pod.path)
        await agent.end_snapshot()
        with bench.lab.entered(bench.pod):
            held = socket.create_connection(("127.0.0.1", 15008))  # a handshake that does not come
        with held:
            await proxy.until("workload_started")
            proxy.signal(signal.SIGINT)
            await proxy.until("draining")
            proxy.signal(signal.SIGINT)
            assert await proxy.ended() == 130
        agent.sock.close()
