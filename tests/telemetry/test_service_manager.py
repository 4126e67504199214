"""sd_notify as systemd hears it: a real datagram socket is the manager."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from telemetry.service_manager import ServiceManager


@pytest.fixture(name="manager")
def _manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def told(sock: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


def test_ready_and_stopping_reach_the_manager(manager: socket.socket) -> None:
    service = ServiceManager(manager.getsockname())
    service.ready("serving")
    service.stopping()
    assert told(manager) == ["READY=1\nSTATUS=serving", "STOPPING=1"]


def test_abstract_addresses_are_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0mycelia-test-{os.getpid()}")
        sock.setblocking(False)
        ServiceManager(f"@mycelia-test-{os.getpid()}").ready()
        assert told(sock) == ["READY=1"]


def test_nobody_listening_stops_nothing(tmp_path: Path) -> None:
    ServiceManager().ready()
    ServiceManager(str(tmp_path / "nobody")).ready()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_read_from_the_environment(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    assert ServiceManager.from_environment(environment, pid=77).watchdog_s == watchdog_s


async def test_signs_of_life_come_at_half_of_the_watchdog_time(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    service = ServiceManager(manager.getsockname(), watchdog_s=30.0)
    with trio.move_on_after(50.0):
        await service.stay_alive()
    assert told(manager) == ["WATCHDOG=1"] * 4
