"""What is tried under the lab's systemd: a mesh of one host, installed and used as docs/ says.

Each step is a claim; the first that does not hold ends the story with what was seen.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

SOURCE: Final = Path("/opt/mycelia/source")
UNITS: Final = Path("/etc/systemd/system")
OUT: Final = Path("/opt/mycelia/out")
PATIENCE_S: Final = 30.0
MANIFESTS: Final = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: mycelia.io/v1alpha1
kind: RegistrationPolicy
metadata: {name: hosts, namespace: shop}
spec:
  nodes: [n1]
  serviceAccounts: [web, db]
  networks: [10.1.0.0/24]
  labels: {app: [web, db], version: [v1]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
"""
# Its first act is a connection; what comes back is kept.
CLIENT: Final = "exec 3<>/dev/tcp/10.1.0.11/9000; head -c5 <&3 > /opt/mycelia/out/first; sleep infinity"
SERVER: Final = """\
import socket
with socket.create_server(("10.1.0.11", 9000)) as listener:
    while True:
        sock, _ = listener.accept()
        sock.sendall(b"hello")
        sock.close()
"""
claims: list[str] = []


def run(command: str, *, may_fail: bool = False) -> str:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise SystemExit(f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def claim(what: str, is_true: Callable[[], object]) -> None:
    """Holds now or soon."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        if time.monotonic() > deadline:
            status = run(
                "mycelia workload list; mycelia status; systemctl status web db --no-pager", may_fail=True
            )
            raise SystemExit(f"not so: {what}\n{status}")
        time.sleep(0.05)
    claims.append(what)
    print(f"ok  {what}", flush=True)


def has_tables(name: str) -> bool:
    return "istio-ambient" in run(f"ip netns exec {name} nft list tables")


def listed() -> str:
    return run("mycelia workload list --control-plane 127.0.0.1:15014")


def add_namespace(name: str, address: str) -> None:
    run(
        f"ip netns add {name}; ip link add v-{name} type veth peer name eth0 netns {name};"
        f"ip link set v-{name} master br0 up; ip -n {name} addr add {address}/24 dev eth0;"
        f"ip -n {name} link set eth0 up; ip -n {name} link set lo up"
    )


def drop_in() -> str:
    """The one of the documentation, word for word."""
    (block,) = re.findall(r"```ini\n(.*?)```", (SOURCE / "docs/workloads.md").read_text(), re.DOTALL)
    return str(block)


def install() -> None:
    run("ip link set lo up; ip link add br0 type bridge; ip addr add 10.1.0.1/24 dev br0; ip link set br0 up")
    run("mycelia install control-plane --listen 10.1.0.1:15012")
    Path("/etc/mycelia/manifests/mesh.yaml").write_text(MANIFESTS)
    token = run("mycelia token create --node n1 --address 10.1.0.1:15012").strip()
    run(f"mycelia install node --join {token} --node n1")
    claim("the services run", lambda: "inactive" not in run("systemctl is-active 'mycelia-*'", may_fail=True))
    claim("installing again changes nothing", lambda: "nothing changed" in run("mycelia install node"))


def workloads() -> None:
    add_namespace("db", "10.1.0.11")
    add_namespace("web", "10.1.0.10")
    subprocess.Popen(["ip", "netns", "exec", "db", sys.executable, "-c", SERVER])
    run("mycelia workload add db --netns /run/netns/db -n shop --service-account db --label app=db --wait")
    claim("a workload is added by hand", lambda: has_tables("db") and "shop/db" in listed())
    (UNITS / "web.service").write_text(f"[Service]\nExecStart=/bin/bash -c '{CLIENT}'\n")
    (UNITS / "web.service.d").mkdir()
    (UNITS / "web.service.d" / "mesh.conf").write_text(drop_in())
    run("systemctl daemon-reload; systemctl start web")
    claim("a unit that has started is captured", lambda: has_tables("web") and "shop/web" in listed())
    claim(
        "its first connection is whole, under its identity", lambda: (OUT / "first").read_bytes() == b"hello"
    )


def faults() -> None:
    pid = int(run("systemctl show -p MainPID --value mycelia-node"))
    os.kill(pid, signal.SIGKILL)
    claim(
        "a node agent that is killed comes back with its workloads",
        lambda: run("mycelia workload list", may_fail=True).count("captured") >= 2,
    )
    (OUT / "first").unlink()
    run("systemctl restart web")
    claim("a unit that is started again is captured again", (OUT / "first").exists)
    claim("and its first connection is whole", lambda: (OUT / "first").read_bytes() == b"hello")


def ends() -> None:
    run("systemctl stop web")
    claim("the address of a unit that has stopped is forgotten", lambda: "shop/web" not in listed())
    claim("its namespace is fenced", lambda: has_tables("web") and "fenced" in run("mycelia workload list"))
    refused = "ip netns exec web bash -c '</dev/tcp/10.1.0.11/9000'"
    claim("whoever comes next is refused", lambda: "refused" in run(refused, may_fail=True))
    run("mycelia workload remove web -n shop")
    claim("a fence is removed by hand", lambda: not has_tables("web"))


def units_by_hand() -> None:
    (UNITS / "lonely.service").write_text("[Service]\nPrivateNetwork=yes\nExecStart=/bin/sleep infinity\n")
    run("systemctl daemon-reload; systemctl start lonely")
    run("mycelia workload add lonely --unit lonely -n shop --service-account web --address 10.1.0.77")
    claim("a unit with a private network is added by hand", lambda: "10.1.0.77" in listed())
    run("systemctl stop lonely")
    claim("and ends with its process", lambda: "10.1.0.77" not in listed())
    told = run("mycelia workload add host --unit dbus -n shop --service-account web", may_fail=True)
    claim("a unit of the host's own network is refused", lambda: "network namespace of the host" in told)


def uninstall() -> None:
    run("systemctl start web")
    told = run("mycelia uninstall node --purge")
    claim("uninstalling says that nothing is left", lambda: "nothing else is left" in told)
    claim("and leaves no rules", lambda: not has_tables("web") and not has_tables("db"))


def main() -> None:
    for part in (install, workloads, faults, ends, units_by_hand, uninstall):
        part()
    print(f"passed: {len(claims)} claims", flush=True)


if __name__ == "__main__":
    main()
