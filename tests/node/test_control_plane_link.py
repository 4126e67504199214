"""The agent's link to the control plane: leases are renewed, and only where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from node import control_plane
from node.control_plane import ControlPlaneLink, LinkSettings, Orders, parse_orders
from proto.mycelia import node_pb2 as pb
from tests.kit.scripted_control_plane import serving


async def test_a_lease_is_renewed_by_saying_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_plane, "RENEW_EVERY_S", 0.02)
    (tmp_path / "token").write_text("the-token\n")
    taken: list[Orders] = []
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with serving(listener, "127.0.0.1", tmp_path / "root.pem") as plane, trio.open_nursery() as nursery:

        async def apply(orders: Orders) -> None:
            taken.append(orders)
            await trio.lowlevel.checkpoint()

        async def wait_reports(number: int) -> None:
            with trio.fail_after(20):
                while len(plane.reports) < number:
                    await plane.changed.wait()

        plane.orders = pb.NodeOrders(lease_seconds=60)
        link = ControlPlaneLink(
            LinkSettings("127.0.0.1", plane.port, tmp_path / "root.pem", tmp_path / "token"),
            report=lambda: pb.NodeReport(node="n1"),
            wait_change=trio.sleep_forever,
            apply=apply,
        )
        nursery.start_soon(link.run)
        await wait_reports(4)
        assert {report.SerializeToString() for report in plane.reports} == {
            pb.NodeReport(node="n1").SerializeToString()
        }
        plane.orders = pb.NodeOrders()
        with trio.fail_after(20):
            while not taken or taken[-1].has_lease:
                await trio.sleep(0.01)
        seen = len(plane.reports)
        plane.hang_up()  # what comes next is the first report of another call
        await wait_reports(seen + 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("state", "word"),
    [(pb.NONE, ""), (pb.REGISTERED, "registered"), (pb.REFUSED, "refused"), (pb.SHADOWED, "shadowed")],
)
def test_orders_say_what_became_of_a_registration(state: pb.RegistrationState.ValueType, word: str) -> None:
    order = pb.Order(uid="shop/web", registration=state, registration_problem="why")
    found = parse_orders(pb.NodeOrders(orders=[order]).SerializeToString())
    assert (found.captures["shop/web"].registration, found.captures["shop/web"].registration_problem) == (
        word,
        "why",
    )
    assert not found.has_lease
