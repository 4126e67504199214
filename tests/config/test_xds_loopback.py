"""xDS over real gRPC on loopback: synchronisation, NACK, restarts, slow and wrong clients."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from ca.errors import NodeTokenRejected
from config.compile.resource import ADDRESS, AUTHORIZATION, SERVICE_ROUTES
from config.xds.client import DeltaXdsClient, NodeInfo
from config.xds.messages import METHOD
from config.xds.server import XdsServer
from proto.envoy import discovery_pb2 as pb
from tests.config.support import Mesh, entry, istio, replica, waypoint
from tests.config.support import service as istio_service
from transport.grpc.channel import ChannelSettings, open_channel
from transport.grpc.metadata import Metadata
from transport.grpc.server import GrpcServer
from transport.grpc.status import GrpcError, GrpcStatus

PATIENCE_S = 20.0  # never waited for: only a failing test gets there
TYPES = (ADDRESS, AUTHORIZATION)


def uid(name: str) -> str:
    return f"Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}"


class Nodes:
    """Tokens are `token-of-<node>`."""

    def authenticate(self, metadata: Metadata, _now: dt.datetime) -> str:
        scheme, _, token = (metadata.get("authorization") or "").partition(" ")
        if scheme != "Bearer" or not token.startswith("token-of-"):
            raise NodeTokenRejected("no token")
        return token.removeprefix("token-of-")


class Service:
    """A mesh behind a real port. `stop` and `start` keep the port."""

    def __init__(self, nursery: trio.Nursery, *texts: str) -> None:
        self._nursery = nursery
        self.mesh = Mesh(*texts)
        self.port = 0

    async def start(self) -> None:
        self.xds = XdsServer(self.mesh.registry, Nodes())
        self.grpc = GrpcServer(streams=self.xds.handlers)
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        await self._nursery.start(self._run, listeners)

    async def _run(self, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            await self.grpc.serve(listeners, None, task_status=task_status)
        self._stopped.set()

    async def stop(self) -> None:
        self._stopped = trio.Event()
        self._scope.cancel()
        await self._stopped.wait()

    def apply(self, *texts: str) -> None:
        self.xds.publish(self.mesh.apply(*texts))

    def remove(self, name: str) -> None:
        self.xds.publish(self.mesh.remove("WorkloadEntry", "shop", name))

    @property
    def settings(self) -> ChannelSettings:
        return ChannelSettings("127.0.0.1", self.port)


class Handler:
    def __init__(self) -> None:
        self.held: dict[str, dict[str, str]] = {ADDRESS: {}, AUTHORIZATION: {}}
        self.rejected: dict[str, str] = {}
        self.terminations: list[str] = []
        self.responses = 0
        self._changed = trio.Event()

    def apply(
        self, type_url: str, upserts: Sequence[tuple[str, str, bytes]], removed: Sequence[str]
    ) -> Mapping[str, str]:
        self.responses += 1
        for name, version, _ in upserts:
            if name not in self.rejected:
                self.held[type_url][name] = version
        for name in removed:
            self.held[type_url].pop(name, None)
        self._changed.set()
        self._changed = trio.Event()
        return {name: self.rejected[name] for name, _, _ in upserts if name in self.rejected}

    def on_termination(self, reason: str) -> None:
        self.terminations.append(reason)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, *names: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while set(self.held[ADDRESS]) != {uid(name) for name in names}:
                await self._changed.wait()

    async def until_terminated(self, count: int) -> None:
        with trio.fail_after(PATIENCE_S):
            while len(self.terminations) < count:
                await self._changed.wait()


def make_client(
    service: Service, handler: Handler, node: str = "n1", *, is_on_demand: bool = False
) -> DeltaXdsClient:
    info = NodeInfo.of_ztunnel(node)
    return DeltaXdsClient(
        service.settings, info, f"token-of-{node}", TYPES, handler, is_on_demand=is_on_demand
    )


@asynccontextmanager
async def serving(*texts: str) -> AsyncIterator[tuple[Service, trio.Nursery]]:
    async with trio.open_nursery() as nursery:
        service = Service(nursery, *texts)
        await service.start()
        yield service, nursery
        nursery.cancel_scope.cancel()


async def synced(client: DeltaXdsClient) -> None:
    with trio.fail_after(PATIENCE_S):
        await client.is_synced.wait()


async def until_status(service: Service, acks: int, nacks: int) -> None:
    with trio.fail_after(PATIENCE_S):
        while (service.xds.totals.acks, service.xds.totals.nacks) != (acks, nacks):
            await trio.sleep(0.001)  # the answer is on its way


async def test_a_client_gets_everything_and_then_every_change() -> None:
    async with serving(entry("web"), istio("AuthorizationPolicy", "p", "{}")) as (service, nursery):
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await synced(client)
        assert set(handler.held[ADDRESS]) == {uid("web")}
        assert set(handler.held[AUTHORIZATION]) == {"shop/p"}
        service.apply(entry("db", ip="10.0.0.2"))
        await handler.until("web", "db")
        service.remove("web")
        await handler.until("db")
        assert handler.held[ADDRESS] == {
            name: each.version for name, each in service.mesh.registry.resources[ADDRESS].items()
        }
        await until_status(service, 4, 0)
        (status,) = service.xds.clients
        assert (status.node, status.peer) == ("n1", "127.0.0.1")
        assert status.state.watches[ADDRESS].acked_version == service.xds.system_version


async def test_a_refusal_shows_in_the_servers_status() -> None:
    async with serving(entry("web"), entry("db", ip="10.0.0.2")) as (service, nursery):
        handler = Handler()
        handler.rejected = {uid("web"): "made up"}
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await handler.until("db")
        await until_status(service, 1, 1)
        (status,) = service.xds.clients
        assert status.state.watches[ADDRESS].last_nack == f"{uid('web')}: made up"
        assert not client.is_synced.is_set()
        handler.rejected = {}
        service.apply(entry("web", ip="10.0.0.9"))
        await handler.until("db", "web")
        await synced(client)


async def test_a_restarted_server_sends_what_differs_and_removes_what_is_gone() -> None:
    async with serving(entry("web"), entry("db", ip="10.0.0.2"), entry("old", ip="10.0.0.3")) as (
        service,
        nursery,
    ):
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await handler.until("web", "db", "old")
        await service.stop()
        await handler.until_terminated(1)
        assert set(handler.held[ADDRESS]) == {uid("web"), uid("db"), uid("old")}
        service.mesh.apply(entry("web", ip="10.0.0.9"), entry("new", ip="10.0.0.4"))
        service.mesh.remove("WorkloadEntry", "shop", "old")
        await service.start()
        await handler.until("web", "db", "new")
        await until_status(service, 2, 0)
        assert service.xds.totals.resources == 2
        assert handler.held[ADDRESS] == {
            name: each.version for name, each in service.mesh.registry.resources[ADDRESS].items()
        }


async def test_a_client_that_remembers_asks_only_for_news() -> None:
    async with serving(entry("web"), entry("db", ip="10.0.0.2")) as (service, nursery):
        versions = {name: each.version for name, each in service.mesh.registry.resources[ADDRESS].items()}
        handler = Handler()
        handler.held[ADDRESS] = {**versions, uid("gone"): "1"}
        client = DeltaXdsClient(
            service.settings,
            NodeInfo.of_ztunnel("n1"),
            lambda: "token-of-n1",
            TYPES,
            handler,
            known={ADDRESS: {**versions, uid("gone"): "1"}},
        )
        nursery.start_soon(client.run)
        await handler.until("web", "db")
        await synced(client)
        assert service.xds.totals.resources == 0


async def test_a_drained_server_ends_streams_gently() -> None:
    async with serving(entry("web")) as (service, nursery):
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await synced(client)
        service.grpc.begin_drain()
        await handler.until_terminated(1)
        assert handler.terminations[0] == "Complete"


async def test_a_server_that_is_not_there_is_tried_again() -> None:
    async with serving(entry("web")) as (service, nursery):
        await service.stop()
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await handler.until_terminated(3)
        assert set(handler.terminations) == {"ConnectionError"}
        assert "cannot connect" in client.last_problem
        await service.start()
        await synced(client)
        assert client.last_problem == ""


@pytest.mark.parametrize(
    ("token", "node", "status"),
    [
        ("", "n1", GrpcStatus.UNAUTHENTICATED),
        ("nonsense", "n1", GrpcStatus.UNAUTHENTICATED),
        ("token-of-n2", "n1", GrpcStatus.PERMISSION_DENIED),
        ("token-of-n2", "", GrpcStatus.PERMISSION_DENIED),
    ],
)
async def test_a_client_must_be_the_node_of_its_token(token: str, node: str, status: GrpcStatus) -> None:
    async with serving(entry("web")) as (service, _):
        metadata = [("authorization", f"Bearer {token}")] if token else []
        async with (
            open_channel(service.settings) as channel,
            channel.stream(METHOD, metadata=metadata) as call,
        ):
            request = pb.DeltaDiscoveryRequest(
                node=NodeInfo("x", {"NODE_NAME": node}).message(), type_url=ADDRESS
            )
            await call.send(request.SerializeToString())
            with pytest.raises(GrpcError) as caught:
                await call.receive()
        assert caught.value.status is status
        assert list(service.xds.clients) == []


@pytest.mark.parametrize(("node", "gateway"), [("n2", "shop/wp"), ("n1", "shop/other"), ("n1", "")])
async def test_a_node_speaks_for_the_waypoints_that_it_runs_only(node: str, gateway: str) -> None:
    async with serving(waypoint(), replica()) as (service, _):
        metadata = [("authorization", f"Bearer token-of-{node}")]
        async with (
            open_channel(service.settings) as channel,
            channel.stream(METHOD, metadata=metadata) as call,
        ):
            info = NodeInfo.of_waypoint(node, gateway)
            await call.send(
                pb.DeltaDiscoveryRequest(node=info.message(), type_url=ADDRESS).SerializeToString()
            )
            with pytest.raises(GrpcError) as caught:
                await call.receive()
        assert caught.value.status is GrpcStatus.PERMISSION_DENIED
        assert f'no workload of waypoint "{gateway}" is on node {node}' in caught.value.message


async def test_a_waypoint_gets_the_routes_of_its_services() -> None:
    web = istio_service("web", "ports: [{port: 80}]", labels="istio.io/use-waypoint: wp")
    async with serving(waypoint(), replica(), web) as (service, nursery):
        handler = Handler()
        handler.held[SERVICE_ROUTES] = {}
        info = NodeInfo.of_waypoint("n1", "shop/wp")
        client = DeltaXdsClient(service.settings, info, "token-of-n1", (*TYPES, SERVICE_ROUTES), handler)
        nursery.start_soon(client.run)
        await synced(client)
        assert set(handler.held[SERVICE_ROUTES]) == {"shop/web.shop.svc.cluster.local"}


async def test_a_message_that_is_no_request_ends_that_stream_only() -> None:
    async with serving(entry("web")) as (service, nursery):
        metadata = [("authorization", "Bearer token-of-n1")]
        async with open_channel(service.settings) as channel:
            async with channel.stream(METHOD, metadata=metadata) as call:
                await call.send(b"\xff\xff")
                with pytest.raises(GrpcError) as caught:
                    await call.receive()
            assert caught.value.status is GrpcStatus.INVALID_ARGUMENT
            assert channel.is_usable
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await synced(client)


async def test_a_client_that_does_not_answer_costs_names_only_and_gets_the_newest_later() -> None:
    async with serving(*(entry(f"w{n}", ip=f"10.0.0.{n}") for n in range(50))) as (service, nursery):
        metadata = [("authorization", "Bearer token-of-n1")]
        async with (
            open_channel(service.settings) as channel,
            channel.stream(METHOD, metadata=metadata) as call,
        ):
            node = NodeInfo.of_ztunnel("n1").message()
            for type_url in TYPES:
                await call.send(pb.DeltaDiscoveryRequest(node=node, type_url=type_url).SerializeToString())
            for _ in TYPES:
                assert await call.receive() is not None
            for round_ in range(100):
                service.apply(*(entry(f"w{n}", ip=f"10.{round_}.1.{n}") for n in range(50)))
            service.remove("w7")
            (slow,) = service.xds.clients
            watch = slow.state.watches[ADDRESS]
            assert (watch.sent, len(watch.upserts), len(watch.removed)) == (1, 49, 1)
            # Others are not held up.
            handler = Handler()
            client = make_client(service, handler, "n2")
            nursery.start_soon(client.run)
            await synced(client)
            await call.send(
                pb.DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce=watch.in_flight).SerializeToString()
            )
            message = await call.receive()
            assert message is not None
            response = pb.DeltaDiscoveryResponse.FromString(message)
            present = service.mesh.registry.resources[ADDRESS]
            assert {each.name: each.version for each in response.resources} == {
                name: each.version for name, each in present.items()
            }
            assert list(response.removed_resources) == [uid("w7")]


async def test_on_demand_a_subscription_ends_with_the_answer() -> None:
    async with serving(entry("web"), entry("db", ip="10.0.0.2")) as (service, nursery):
        handler = Handler()
        client = make_client(service, handler, is_on_demand=True)
        nursery.start_soon(client.run)
        await synced(client)
        assert handler.held[ADDRESS] == {}
        with trio.fail_after(PATIENCE_S):
            await client.subscribe("/10.0.0.2")
            assert set(handler.held[ADDRESS]) == {uid("db")}
            await client.subscribe("/10.9.9.9")
            await client.subscribe(uid("db"))
        assert set(handler.held[ADDRESS]) == {uid("db")}


async def test_on_demand_a_question_survives_the_loss_of_the_stream() -> None:
    async with serving(entry("web")) as (service, nursery):
        handler = Handler()
        client = make_client(service, handler, is_on_demand=True)
        nursery.start_soon(client.run)
        await synced(client)
        await service.stop()
        await handler.until_terminated(1)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as asking:
                asking.start_soon(client.subscribe, "/10.0.0.1")
                await trio.testing.wait_all_tasks_blocked()
                await service.start()
        assert set(handler.held[ADDRESS]) == {uid("web")}


async def test_ten_thousand_workloads_arrive_in_one_response() -> None:
    """A node proxy counts the first accepted response of a type as the whole (ztunnel-facts 5.4)."""
    texts = "---\n".join(entry(f"w{n}", ip=f"10.{n // 40000}.{n // 200}.{n % 200}") for n in range(10_000))
    async with serving(texts) as (service, nursery):
        handler = Handler()
        client = make_client(service, handler)
        nursery.start_soon(client.run)
        await synced(client)
        assert len(handler.held[ADDRESS]) == 10_000
        assert handler.responses == 2
        service.apply(entry("w7", ip="10.200.0.1"))
        await handler.until(*(f"w{n}" for n in range(10_000)))
        await until_status(service, 3, 0)
        assert service.xds.totals.resources == 10_001
