"""`mycelia workload`: a workload without a manifest, from registration to forgetting, in a whole mesh."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mesh.cli import main
from mesh.lab.network import Workload
from tests.kit.mesh import STATUS_PORT, Document, Mesh

pytestmark = pytest.mark.namespaces

NUMBERS = itertools.count(1)


def policy(**changes: Any) -> Document:
    spec = {
        "nodes": ["alpha"],
        "serviceAccounts": ["web-*"],
        "networks": ["0.0.0.0/0", "::/0"],
        "labels": {"app": ["*"]},
        **changes,
    }
    return {
        "apiVersion": "mycelia.io/v1alpha1",
        "kind": "RegistrationPolicy",
        "metadata": {"name": "hosts", "namespace": "default"},
        "spec": spec,
    }


def apply_policy(mesh: Mesh, **changes: Any) -> None:
    """Returns when it counts: its name is new each time."""
    document = dict(policy(**changes))
    document["metadata"] = {**document["metadata"], "name": f"hosts-{next(NUMBERS)}"}
    mesh.apply("registration", document)

    def is_known() -> bool:
        _, text = mesh.get(mesh.lab.management, ("127.0.0.1", STATUS_PORT), "/objects")
        return str(document["metadata"]["name"]) in text

    mesh.wait("the policy", is_known)


@pytest.fixture(autouse=True)
def allowing(mesh: Mesh) -> Iterator[None]:
    apply_policy(mesh)
    yield
    mesh.withdraw("registration")


def workload(mesh: Mesh, *arguments: str, node: str = "alpha") -> int:
    command, *rest = arguments
    return main(["workload", command, "--agent", str(mesh.nodes[node].api), *rest])


def registration(mesh: Mesh, name: str) -> dict[str, Any]:
    status, text = mesh.get(mesh.lab.management, ("127.0.0.1", STATUS_PORT), "/registrations")
    assert status == 200
    return next((each for each in json.loads(text) if each["name"] == name), {})


def add(mesh: Mesh, name: str, place: Workload, *more: str) -> int:
    account = ("--service-account", f"web-{name}")
    return workload(mesh, "add", name, "--netns", str(place.path), *account, *more)


def test_a_registered_workload_is_captured_reached_under_its_identity_and_forgotten(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mesh.add("client", "beta")
    place = mesh.lab.add_workload("plain-1", mesh.nodes["alpha"].node)
    assert add(mesh, "one", place, "--label", "app=one", "--wait") == 0
    assert "default/one is registered and captured" in capsys.readouterr().out
    found = registration(mesh, "one")
    assert (found["state"], found["health"], found["addresses"]) == (
        "registered", "healthy", [place.ipv4, place.ipv6]
    )  # fmt: skip
    assert found["lease_age_s"] <= found["lease_s"]
    mesh.wait_everywhere(
        "one",
        lambda dump: any(each["name"] == "one" and each["protocol"] == "HBONE" for each in dump["workloads"]),
    )
    with mesh.listen(place, 8080) as listener, mesh.connect(client, (place.ipv4, 8080)) as sock:
        accepted, _ = listener.accept()
        accepted.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        accepted.close()
    record = mesh.wait_access_log("alpha", dst_workload="one", direction="inbound")
    assert record["dst.identity"].endswith("/ns/default/sa/web-one")
    assert workload(mesh, "list") == 0
    assert "registered" in capsys.readouterr().out
    assert workload(mesh, "remove", "one") == 0
    mesh.wait("no registration", lambda: not registration(mesh, "one"))
    mesh.wait_everywhere("one is forgotten", lambda dump: "web-one" not in json.dumps(dump["workloads"]))
    assert mesh.lab.run(place, ["nft", "list", "ruleset"]).stdout == ""


def test_what_no_policy_allows_is_refused_and_registered_once_it_is_allowed(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    apply_policy(mesh, nodes=["beta"])
    place = mesh.lab.add_workload("plain-2", mesh.nodes["alpha"].node)
    assert add(mesh, "two", place) == 1
    assert "does not list node alpha" in capsys.readouterr().out
    assert mesh.lab.run(place, ["nft", "list", "ruleset"]).stdout == "", "nothing is captured of it"
    apply_policy(mesh)
    mesh.wait("registered", lambda: registration(mesh, "two").get("state") == "registered")
    with mesh.agent("alpha") as agent:
        agent.wait("default/two")
    assert workload(mesh, "remove", "two") == 0


def test_a_manifest_of_the_same_name_counts_and_says_so(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = mesh.add("declared", "alpha", is_attached=False)
    assert add(mesh, placed.name, placed) == 0
    assert f"WorkloadEntry default/{placed.name} of the manifests counts instead" in capsys.readouterr().out
    _, text = mesh.get(mesh.lab.management, ("127.0.0.1", STATUS_PORT), "/objects")
    (shown,) = [
        each for each in json.loads(text) if each["name"] == placed.name and each["kind"] == "WorkloadEntry"
    ]
    assert "counts before the registration" in json.dumps(shown["conditions"])
    assert workload(mesh, "remove", placed.name) == 0


def test_a_process_that_ends_takes_its_registration_along(mesh: Mesh) -> None:
    place = mesh.lab.add_workload("plain-3", mesh.nodes["alpha"].node)
    process = mesh.lab.popen(place, ["sleep", "1000"])
    account = ("--service-account", "web-three")
    assert workload(mesh, "add", "three", "--pid", str(process.pid), *account, "--wait") == 0
    mesh.lab.stop(process)
    mesh.wait("no registration", lambda: not registration(mesh, "three"))
    with mesh.agent("alpha") as agent:
        mesh.wait("not attached", lambda: "default/three" not in [each.uid for each in agent.list()])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--pid", "4000000"], "No such file"),
        (["--netns", "/proc/self/ns/net"], "node's own network namespace"),
        (["--netns", "/run/netns/nobody"], "No such file"),
        (["--unit", "web"], "systemd does not run on this host"),
        (["--container", "web"], "cannot reach the container engine"),
        (["--netns", "/run/netns/x", "--label", "app"], "is not KEY=VALUE"),
        (["--netns", "/run/netns/x", "--address", "10.0.0.0/8"], "addresses are numeric"),
    ],
)
def test_bad_requests_say_what_is_wrong(
    mesh: Mesh, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert workload(mesh, "add", "bad", *arguments) == 2
    assert part.lower() in capsys.readouterr().err.lower()


def test_awaiting_bears_what_is_not_there_yet(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    assert workload(mesh, "await", "four", "--timeout", "0.2") == 2
    assert "default/four is not enrolled" in capsys.readouterr().err
    place = mesh.lab.add_workload("plain-4", mesh.nodes["alpha"].node)
    with ThreadPoolExecutor(1) as pool:
        awaited = pool.submit(workload, mesh, "await", "four")
        assert add(mesh, "four", place) == 0
        assert awaited.result() == 0
    assert "redirect to :15001" in mesh.lab.run(place, ["nft", "list", "ruleset"]).stdout
    assert workload(mesh, "remove", "four") == 0
    assert main(["workload", "await", "x", "--agent", "/nowhere", "--timeout", "0"]) == 2
    assert "cannot reach the node agent" in capsys.readouterr().err


SENDER = """
import socket, sys
sys.stdin.readline()
with socket.create_connection((sys.argv[1], 9000), timeout=15) as sock:
    assert sock.recv(5) == b"hello"
with socket.create_connection((sys.argv[1], 9000), timeout=15) as sock:
    sock.sendall(b"x" * int(sys.argv[2]))
"""


@pytest.mark.parametrize("size", [1, 60_000])
def test_the_first_and_the_last_connection_of_a_short_workload_are_whole(mesh: Mesh, size: int) -> None:
    """The first begins as soon as it is captured; the last is read when it has ended and is forgotten."""
    server = mesh.add("server", "beta")
    place = mesh.lab.add_workload(f"short-{size}", mesh.nodes["alpha"].node)
    with mesh.listen(server, 9000) as listener:
        process = mesh.lab.popen(
            place, [sys.executable, "-c", SENDER, server.ipv4, str(size)], stdin=subprocess.PIPE
        )
        account = ("--service-account", "web-short")
        assert workload(mesh, "add", "short", "--pid", str(process.pid), *account, "--wait") == 0
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
        first, _ = listener.accept()
        with first:
            first.sendall(b"hello")
            last, _ = listener.accept()
        assert process.wait(15) == 0
        mesh.wait("no registration", lambda: not registration(mesh, "short"))
        with mesh.agent("alpha") as agent:
            mesh.wait("not attached", lambda: "default/short" not in [each.uid for each in agent.list()])
        last.settimeout(15)
        received = 0
        with last:
            while data := last.recv(65536):
                received += len(data)
    assert received == size


def hook(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, state: object) -> int:
    """As a container runtime calls it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(state).encode())))
    return workload(mesh, "oci-hook")


def test_a_runtime_is_held_until_its_container_is_captured(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = mesh.lab.add_workload("box-1", mesh.nodes["alpha"].node)
    process = mesh.lab.popen(place, ["sleep", "1000"])
    annotations = {"mycelia.io/workload": "box", "mycelia.io/service-account": "web-box"}
    state = {
        "ociVersion": "1.0.2",
        "id": "ab12",
        "status": "creating",
        "pid": process.pid,
        "annotations": annotations,
    }
    assert hook(mesh, monkeypatch, {**state, "annotations": {"other": "x"}}) == 0
    assert hook(mesh, monkeypatch, state) == 0
    assert "redirect to :15001" in mesh.lab.run(place, ["nft", "list", "ruleset"]).stdout
    with mesh.agent("alpha") as agent:
        (listed,) = [each for each in agent.list() if each.uid == "default/box"]
        assert (listed.origin, listed.is_captured) == ("container ab12", True)
    other = mesh.lab.popen(mesh.lab.add_workload("box-2", mesh.nodes["alpha"].node), ["sleep", "1000"])
    assert hook(mesh, monkeypatch, {**state, "id": "cd34", "pid": other.pid}) == 2
    assert "enrolled already, by container ab12" in capsys.readouterr().err
    mesh.lab.stop(process)
    refused = {**annotations, "mycelia.io/service-account": "admin"}
    assert hook(mesh, monkeypatch, {**state, "id": "cd34", "pid": other.pid, "annotations": refused}) == 2
    assert "may not be registered" in capsys.readouterr().err
    with mesh.agent("alpha") as agent:
        assert "default/box" not in [each.uid for each in agent.list()], "it was not started"
    assert hook(mesh, monkeypatch, {"id": "x"}) == 2
    assert "not the state of a container" in capsys.readouterr().err
