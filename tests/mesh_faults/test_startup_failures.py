"""Programs that cannot start: one message (what, where, the next step), an exit code, no traceback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kit.certificates import shared_root
from tests.kit.mesh import ROOT
from tests.mesh_faults.traffic import Scene

pytestmark = pytest.mark.namespaces

NO_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
PORT = 18080


def without(program: str) -> tuple[str, ...]:
    """Runs a command in mounts of its own where the program is no program."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert path is not None
    script = f'mount --bind /dev/null {os.path.realpath(path)} && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@dataclass(frozen=True)
class Case:
    """`{}` in arguments and environment is the test's folder; `prepare` makes what is wrong in it."""

    arguments: str
    expected: Sequence[str]
    prepare: Callable[[Path], object] = lambda _: None
    prefix: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    status: int = 1


def a_file(name: str, text: str = "", *, mode: int = 0o600) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
        path.chmod(mode)

    return prepare


def a_folder(name: str, *, mode: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).mkdir(mode=mode)


CONTROL_PLANE = (
    "config --manifests {}/manifests --state-dir {}/state --listen 127.0.0.1:0 --status-listen 127.0.0.1:0"
)
AGENT = (
    "node --node alpha --state-dir {}/state --control-plane 127.0.0.1:1"
    " --root-cert {}/root --token-file {}/token --zds-socket {}/zds.sock --api-socket {}/api.sock"
)

CASES: dict[str, Case] = {
    "control plane: port in use": Case(
        f"{CONTROL_PLANE} --listen 127.0.0.1:{PORT}",
        ["the control plane's port", f"127.0.0.1:{PORT}", "Address already in use", "MYC-1901"],
    ),
    "control plane: status port in use": Case(
        f"{CONTROL_PLANE} --status-listen 127.0.0.1:{PORT}", ["status port", "Address already in use"]
    ),
    "control plane: an address of another host": Case(
        f"{CONTROL_PLANE} --listen 192.0.2.1:{PORT}", ["192.0.2.1", "Cannot assign requested address"]
    ),
    "control plane: no such address": Case(
        f"{CONTROL_PLANE} --listen 127.0.0.1:http", ["'127.0.0.1:http'", "IP:PORT", "MYC-3005"]
    ),
    "control plane: no manifests": Case(
        CONTROL_PLANE.replace("/manifests", "/none"), ["{}/none", "No such file or directory", "MYC-3001"]
    ),
    "control plane: manifests that it may not read": Case(
        CONTROL_PLANE.replace("/manifests", "/secret"),
        ["{}/secret", "Permission denied", "MYC-3001"],
        a_folder("secret", mode=0),
        NO_PRIVILEGES,
    ),
    "control plane: state directory is a file": Case(
        CONTROL_PLANE, ["{}/state", "--state-dir", "MYC-3002"], a_file("state")
    ),
    "control plane: state that it may not write": Case(
        CONTROL_PLANE, ["{}/state", "--state-dir"], a_folder("state", mode=0o500), NO_PRIVILEGES
    ),
    "control plane: state that others may read": Case(
        CONTROL_PLANE, ["{}/state", "chmod 700", "755"], a_folder("state", mode=0o755)
    ),
    "control plane: state that is damaged": Case(
        CONTROL_PLANE, ["{}/state/captured.json", "not JSON", "remove it"], a_file("state/captured.json", "{")
    ),
    "control plane: a trust domain that cannot be": Case(
        f"{CONTROL_PLANE} --trust-domain a/b", ["--trust-domain 'a/b'", "MYC-3005"]
    ),
    "control plane: no such log level": Case(
        f"{CONTROL_PLANE} --log-level loud", ["'loud'", "debug", "MYC-1902"]
    ),
    "control plane: an unknown option": Case(f"{CONTROL_PLANE} --moon", ["--moon"], status=2),
    "a token: state directory is a file": Case(
        "config mint-node-token --state-dir {}/state --node alpha",
        ["{}/state", "--state-dir"],
        a_file("state"),
    ),
    "a token: no such node name": Case("config mint-node-token --state-dir {}/state --node a/b", ["'a/b'"]),
    "validate: a wrong manifest": Case(
        "config validate {}/manifests",
        [],
        a_file(
            "manifests/bad.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 0}]}",
        ),
    ),
    "validate: no such directory": Case("config validate {}/none", ["{}/none", "MYC-3001"]),
    "node agent: no nft": Case(AGENT, ["nft", "apt", "MYC-5001"], prefix=without("nft")),
    "node agent: no privilege": Case(AGENT, ["run the agent as root", "MYC-5002"], prefix=NO_PRIVILEGES),
    "node agent: state directory is a file": Case(
        AGENT, ["{}/state", "--state-dir", "MYC-5020"], a_file("state")
    ),
    "node agent: a file where its socket is to be": Case(
        AGENT, ["{}/zds.sock", "not a socket", "MYC-5016"], a_file("zds.sock", "precious")
    ),
    "node agent: a socket path that is too long": Case(
        f"{AGENT} --api-socket {{}}/{'x' * 120}", ["longer than a unix socket allows", "MYC-5016"]
    ),
    "node agent: no such control plane": Case(
        AGENT.replace("127.0.0.1:1", "nowhere"), ["'nowhere'", "HOST:PORT", "MYC-5040"]
    ),
    "ztunnel: admin port in use": Case(
        f"ztunnel --admin-port {PORT}", ["the administration port", f"{PORT}", "Address already in use"]
    ),
    "ztunnel: metrics port in use": Case(f"ztunnel --stats-port {PORT}", ["the metrics port", f"{PORT}"]),
    "ztunnel: readiness port in use": Case(
        f"ztunnel --readiness-port {PORT}", ["the readiness port", f"{PORT}"]
    ),
    "ztunnel: no privilege": Case("ztunnel", ["network namespaces", "CAP_SYS_ADMIN"], prefix=NO_PRIVILEGES),
    "ztunnel: no such control plane": Case(
        "ztunnel", ["XDS_ADDRESS", "'ftp://x'", "https://"], environment={"XDS_ADDRESS": "ftp://x"}
    ),
    "ztunnel: a duration that is none": Case(
        "ztunnel", ["SECRET_TTL", "'soon'", "10s"], environment={"SECRET_TTL": "soon"}
    ),
    "ztunnel: a number out of range": Case(
        "ztunnel",
        ["POOL_MAX_STREAMS_PER_CONNECTION", "'0'", "1 to"],
        environment={"POOL_MAX_STREAMS_PER_CONNECTION": "0"},
    ),
    "ztunnel: what it does not do": Case("ztunnel", ["CRL_PATH", "unset"], environment={"CRL_PATH": "/crl"}),
    "mycelia: no such manifests": Case("mesh.cli config validate {}/none", ["{}/none", "MYC-3001"], status=2),
    "mycelia: no agent": Case(
        "mesh.cli node list --agent {}/none.sock", ["{}/none.sock", "MYC-5015"], status=2
    ),
    "mycelia: nothing runs": Case("mesh.cli status", ["nothing of the mesh runs", "--help"], status=2),
    "mycelia: demo without its programs": Case(
        "mesh.cli demo --fast",
        ["curl", "apt-get install", "MYC-6001"],
        environment={"PATH": "/nonexistent"},
        status=2,
    ),
    "mycelia: no such command": Case("mesh.cli dance", ["dance"], status=2),
}


@pytest.fixture
def taken_port() -> Iterator[None]:
    """PORT is in use on all addresses."""
    with socket.create_server(("", PORT)):
        yield


def start(case: Case, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "NODE_NAME": "alpha",
        "XDS_ADDRESS": "http://127.0.0.1:1",
        "INPOD_UDS": f"{folder}/zds.sock",
        "MYCELIA_STATE_DIR": f"{folder}/state",
        "XDG_RUNTIME_DIR": str(folder),
        **case.environment,
    }
    words = [word.replace("{}", str(folder)) for word in case.arguments.split()]
    return subprocess.run(
        [*case.prefix, sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=30,
    )


@pytest.mark.usefixtures("taken_port")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_message_and_a_failure(case: Case, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir(mode=0o700)
    case.prepare(tmp_path)
    with contextlib.ExitStack() as stack:
        for folder in (path for path in tmp_path.iterdir() if path.is_dir()):
            stack.callback(folder.chmod, 0o700)  # for pytest's clean-up
        ended = start(case, tmp_path)
    assert ended.returncode == case.status, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    told = [line for line in ended.stderr.splitlines() if not is_log(line) and not is_usage(line)]
    assert len(told) == (1 if case.expected else 0), ended.stderr
    for text in case.expected:
        assert text.replace("{}", str(tmp_path)) in told[0]


def is_log(line: str) -> bool:
    """An event of before the failure: it begins with the time."""
    return line[:4].isdigit() and line[4] == "-"


def is_usage(line: str) -> bool:
    return line.startswith(("usage:", " "))


def test_a_wrong_manifest_is_named_with_file_field_and_what_is_allowed(tmp_path: Path) -> None:
    case = CASES["validate: a wrong manifest"]
    case.prepare(tmp_path)
    ended = start(case, tmp_path)
    assert ended.returncode == 1
    assert "bad.yaml" in ended.stdout
    assert "spec.ports[0].port" in ended.stdout
    assert "allowed: 1 or more" in ended.stdout


def test_a_second_control_plane_on_the_same_state_is_refused(scene: Scene, tmp_path: Path) -> None:
    state = scene.mesh.state
    ended = start(
        Case(CONTROL_PLANE.replace("{}/state", str(state)).replace("{}", str(tmp_path)), []), tmp_path
    )
    assert ended.returncode == 1
    assert f"another control plane runs with the state directory {state}" in ended.stderr


def test_a_second_agent_on_the_same_node_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = scene.mesh.nodes["alpha"].folder
    for arguments in (
        AGENT.replace("{}/state", f"{folder}/agent"),
        AGENT.replace("{}/zds.sock", f"{folder}/zds.sock"),
    ):
        ended = start(Case(arguments, []), tmp_path)
        assert ended.returncode == 1
        assert str(folder) in ended.stderr
        assert "another" in ended.stderr


class TestWhatMayStillComeRight:
    """Tokens and root certificates are files that are renewed: a process with wrong ones goes on trying, and
    says at once what is wrong.
    """

    @pytest.mark.parametrize("token", ["", "no token", "of another node"])
    def test_a_bad_token(self, scene: Scene, token: str, tmp_path: Path) -> None:
        mesh = scene.mesh
        alpha, beta = mesh.nodes["alpha"], mesh.nodes["beta"]
        path = alpha.folder / "token"
        good = path.read_text()
        scene.end_ztunnel("alpha")
        scene.kill_agent("alpha")
        path.write_text((beta.folder / "token").read_text() if token == "of another node" else token)
        try:
            mesh.start_agent("alpha")
            mesh.start_ztunnel("alpha", MYCELIA_STATE_DIR=str(tmp_path / "state"))
            problem = mesh.wait(
                "a reason", lambda: scene.log_events(alpha.ztunnel_logs[-1], "xds_stream_ended")
            )[0]
            assert any(
                word in problem["problem"] for word in ("UNAUTHENTICATED", "PERMISSION_DENIED", "token")
            )
            with mesh.agent("alpha") as agent:
                reason = mesh.wait(
                    "the agent's reason", lambda: not_connected(agent.status()["control_plane"])
                )
            assert any(word in reason for word in ("UNAUTHENTICATED", "PERMISSION_DENIED", "token"))
            assert not mesh.is_ready("alpha")
        finally:
            path.write_text(good)
        mesh.await_ready("alpha")
        mesh.wait("traffic to flow", scene.can_talk)

    @pytest.mark.parametrize("roots", ["another root", "no certificate", "no file"])
    def test_a_wrong_root_certificate(self, scene: Scene, roots: str, tmp_path: Path) -> None:
        mesh = scene.mesh
        path = tmp_path / "root.pem"
        if roots != "no file":
            path.write_text(shared_root().pem if roots == "another root" else "nothing")
        scene.end_ztunnel("alpha")
        state = str(tmp_path / "state")
        mesh.start_ztunnel("alpha", XDS_ROOT_CA=str(path), CA_ROOT_CA=str(path), MYCELIA_STATE_DIR=state)
        log = mesh.nodes["alpha"].ztunnel_logs[-1]
        problem = mesh.wait("a reason", lambda: scene.log_events(log, "xds_stream_ended"))[0]["problem"]
        assert "root" in problem
        assert not mesh.is_ready("alpha")
        path.write_text((mesh.state / "root-cert.pem").read_text())
        mesh.await_ready("alpha")
        mesh.wait("traffic to flow", scene.can_talk)


def not_connected(text: str) -> str:
    return "" if text in ("connected", "not connected yet") else text
