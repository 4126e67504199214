"""The lab: who reaches whom, captures, faults, and that nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mesh.lab.errors import LabCommandError, LabError, LabProgramMissingError, NamespacesForbiddenError
from mesh.lab.network import Lab, Place
from mesh.lab.supervise import MARKER

pytestmark = pytest.mark.namespaces

ROOT = Path(__file__).resolve().parents[2]


def reaches(lab: Lab, source: Place, destination: Place, address: str, *, patience_s: float = 5.0) -> bool:
    """True when a connection arrives within the patience."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.entered(destination):
        server = socket.create_server(("", 7), family=family)
    with lab.entered(source):
        client = socket.socket(family)
    with server, client:
        client.settimeout(patience_s)
        try:
            client.connect((address, 7))
        except OSError:
            return False
        accepted, _ = server.accept()
        accepted.close()
        return True


def test_everybody_reaches_every_workload_in_both_families(lab: Lab) -> None:
    alpha, beta = lab.add_nodes("alpha", "beta")
    web, db, far = lab.add_workloads({"web": alpha, "db": alpha, "far": beta})
    assert (web.ipv4, db.ipv4, far.ipv4) == ("10.77.1.10", "10.77.1.11", "10.77.2.10")
    assert (web.ipv6, far.ipv6) == ("fd77:1::10", "fd77:2::10")
    for source in (web, alpha, lab.management):
        for destination in (web, db, far):
            for address in destination.addresses:
                assert reaches(lab, source, destination, address)
    for node in (alpha, beta):
        assert reaches(lab, node, lab.management, lab.management.ipv4)
        assert reaches(lab, lab.management, node, node.management_ipv4)
        assert reaches(lab, lab.management, node, node.management_ipv6)


def test_later_nodes_join_the_earlier(lab: Lab) -> None:
    first = lab.add_workload("first", lab.add_node("alpha"))
    second = lab.add_workload("second", lab.add_node("beta"))
    assert reaches(lab, first, second, second.ipv4)
    assert reaches(lab, second, first, first.ipv6)


def test_links_can_be_cut_and_joined(lab: Lab) -> None:
    alpha, beta = lab.add_nodes("alpha", "beta")
    web, far = lab.add_workloads({"web": alpha, "far": beta})
    lab.set_link(alpha, is_up=False)
    assert not reaches(lab, web, far, far.ipv4, patience_s=0.2)
    assert reaches(lab, alpha, lab.management, lab.management.ipv4)
    lab.set_link(alpha, is_up=True)
    assert reaches(lab, web, far, far.ipv4)
    lab.set_management_link(alpha, is_up=False)
    assert not reaches(lab, alpha, lab.management, lab.management.ipv4, patience_s=0.2)


def test_two_labs_do_not_meet(lab: Lab) -> None:
    with Lab() as other:
        mine = lab.add_workload("web", lab.add_node("alpha"))
        theirs = other.add_workload("web", other.add_node("alpha"))
        assert mine.ipv4 == theirs.ipv4
        with lab.entered(mine), socket.create_server(("", 7)):
            assert not reaches_closed(other, theirs, mine.ipv4)


def reaches_closed(lab: Lab, place: Place, address: str) -> bool:
    with lab.entered(place):
        client = socket.socket()
    with client:
        client.settimeout(1)
        return client.connect_ex((address, 7)) == 0


def test_a_capture_holds_what_crossed_the_link_before_it_is_asked(lab: Lab) -> None:
    alpha, beta = lab.add_nodes("alpha", "beta")
    web, far = lab.add_workloads({"web": alpha, "far": beta})
    with lab.entered(far):
        server = socket.create_server(("", 80))
    with lab.entered(web):
        client = socket.socket()
    with server, client, lab.capture(alpha) as capture:
        client.connect((far.ipv4, 80))
        accepted, _ = server.accept()
        with accepted:
            for piece in (b"a readable ", b"request"):
                client.sendall(piece)
                accepted.recv(100)
        assert capture.contains(b"a readable request")
        assert not capture.contains(b"something else")
        assert capture.destination_ports() == {80}
        capture.stop()
        capture.stop()
        assert capture.contains(b"a readable request")


def test_a_workload_can_be_removed_and_its_neighbours_stay(lab: Lab) -> None:
    alpha = lab.add_node("alpha")
    web, db = lab.add_workloads({"web": alpha, "db": alpha})
    lab.remove_workload("db")
    assert not db.path.exists()
    assert reaches(lab, alpha, web, web.ipv4)


def test_commands_run_in_the_namespace_and_failures_are_told(lab: Lab) -> None:
    web = lab.add_workload("web", lab.add_node("alpha"))
    assert "10.77.1.10" in lab.run(web, ["ip", "addr"]).stdout
    assert lab.run("web", ["cat"], stdin="echo").stdout == "echo"
    with pytest.raises(LabCommandError, match=r"in web: `sh -c .*ended with 3: told"):
        lab.run(web, ["sh", "-c", "echo told >&2; exit 3"])
    with pytest.raises(LabCommandError, match=r"longer than 0\.1 s"):
        lab.run(web, ["sleep", "10"], timeout_s=0.1)
    with pytest.raises(LabProgramMissingError, match="no-such-program"):
        lab.run(web, ["no-such-program"])
    with pytest.raises(LabError, match="name is taken"):
        lab.add_workload("web", lab.nodes[0])


def test_close_ends_processes_and_namespaces_and_may_be_repeated(tmp_path: Path) -> None:
    lab = Lab(directory=tmp_path / "lab")
    web = lab.add_workload("web", lab.add_node("alpha"))
    deaf = tmp_path / "deaf"
    os.mkfifo(deaf)
    stubborn = lab.popen(web, ["sh", "-c", f"trap '' TERM; echo now > {deaf}; while :; do sleep 0.1; done"])
    assert deaf.read_text() == "now\n"
    gentle = lab.popen(web, ["sleep", "1000"])
    lab.stop(gentle)
    assert gentle.returncode == -signal.SIGTERM
    lab.stop(stubborn, grace_s=0.2)
    assert stubborn.returncode == -signal.SIGKILL
    last = lab.popen(web, ["sleep", "1000"])
    lab.capture(lab.nodes[0])
    lab.close()
    lab.close()
    assert last.returncode is not None
    assert not web.path.exists()
    assert list(Path("/run/netns").glob(f"{lab._prefix}*")) == []


def test_a_lab_is_refused_outside_a_private_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, "0:0")
    with pytest.raises(NamespacesForbiddenError, match="inside a private namespace only"):
        Lab()


PROGRAM = """
    import os, subprocess, sys, time
    from mesh.lab.private import enter_private_namespace
    enter_private_namespace(sys.orig_argv)
    from mesh.lab.network import Lab
    lab = Lab()
    web = lab.add_workload("web", lab.add_node("alpha"))
    lab.popen(web, ["sleep", "4711"])
    print(os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net"), flush=True)
    {ending}
"""


def start(ending: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM).format(ending=ending)
    environment = {name: value for name, value in os.environ.items() if name != MARKER}
    # A run in the background of a shell inherits "interrupts are ignored", and so would this one.
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def processes_in(namespace: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "ns/pid").readlink()) == namespace:
                    found.append(entry.name)
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_survives_a_signal_to_the_supervisor(end: signal.Signals, status: int) -> None:
    child = start("time.sleep(1000)")
    assert child.stdout is not None
    pids, net = child.stdout.readline().split()
    assert net != str(Path("/proc/self/ns/net").readlink())
    assert processes_in(pids)
    child.send_signal(end)
    child.communicate(timeout=10)
    # An interrupted Python program ends with 1 or by the signal, as it likes.
    assert child.returncode in {status, 1, 130}
    deadline = 200
    while processes_in(pids) and deadline:
        deadline -= 1
        os.sched_yield()
    assert processes_in(pids) == []


@pytest.mark.parametrize(
    ("ending", "status"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("raise RuntimeError", 1), ("pass", 0)],
)
def test_the_exit_code_is_the_commands(ending: str, status: int) -> None:
    child = start(ending)
    pids = child.communicate(timeout=10)[0].split()[0]
    assert child.returncode == status
    assert processes_in(pids) == []
