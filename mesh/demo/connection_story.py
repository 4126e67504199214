"""The first act of the demo: connections. Each chapter does one thing and writes down what it saw."""

from __future__ import annotations

import base64
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography import x509

from mesh.demo.layout import ACTORS, RUN, WAYPOINT
from mesh.demo.stage import READY_S
from mesh.demo.teller import Chapter, Teller
from mesh.lab.capture import Capture

HBONE_PORT: Final = 15008
SECRET: Final = b"card 4929-1234-5678-9012"
REQUEST: Final = b"GET /order.txt"
WEB_VIP_IPV4, WEB_VIP_IPV6 = "10.78.0.10", "fd78::10"
TLS_RECORDS: Final = (b"\x14\x03", b"\x15\x03", b"\x16\x03", b"\x17\x03")
SPIFFE: Final = re.compile(r"URI:(spiffe://\S+)")
ACTOR: Final = {actor.name: actor for actor in ACTORS}

MAIL: Final = """\
From: client@shop.example
To: orders@shop.example
Subject: Order 18

Two kilos of chanterelles, please.
"""


class ConnectionStory(Teller):
    """The first act: what the mesh does with any TCP connection."""

    def chapters(self) -> Sequence[Chapter]:
        """In order; each builds on those before it."""
        return (
            ("Two nodes, eleven workloads, real programs", self.build),
            ("Before: whoever holds the wire reads along", self.before),
            ("One label enrols the namespace", self.enrol),
            ("The same request again: mutual TLS is all that the wire carries", self.after),
            ("Who is who", self.identities),
            ("A server that speaks first", self.server_first),
            ("The server sees its client, in both address families", self.addresses),
            ("A policy cuts an open connection", self.policy),
            ("A strict namespace refuses plaintext", self.strict),
        )

    # --- chapters ---

    def build(self) -> None:
        stage = self.stage
        self.say(
            "alpha and beta are network namespaces joined by a link; so is each workload behind its node."
        )
        stage.build_network()
        stage.start_applications()
        stage.start_control_plane()
        stage.start_nodes()
        for actor in ACTORS:
            place = stage.workload(actor.name)
            self.say(
                f"{actor.name:9} on {actor.node:6} namespace {actor.namespace:7} {place.ipv4:12} {place.ipv6}"
            )

    def before(self) -> None:
        with self._wire() as capture:
            body = self.fetch("client", self.url("web"))
            self.show(f"client$ curl {self.url('web')}\n{body}")
            lines = [line for line in self._readable(capture) if REQUEST in line or SECRET in line]
        self.say("a packet capture on the link between the nodes:")
        self.show("\n".join(line.decode(errors="replace") for line in lines))
        self.claim(
            "before enrolment the request and its answer can be read on the wire",
            is_held=any(REQUEST in line for line in lines) and any(SECRET in line for line in lines),
            evidence=f"{len(lines)} readable lines found",
        )

    def enrol(self) -> None:
        stage = self.stage
        stage.enrol()
        self.show("namespace-shop.yaml: labels: istio.io/dataplane-mode: ambient")
        members = [actor for actor in ACTORS if actor.namespace == "shop" and actor != WAYPOINT]
        begun = time.monotonic()
        for actor in members:
            with stage.agent(actor.node) as agent:
                agent.wait(f"{actor.namespace}/{actor.name}", timeout_s=READY_S)
        self._wait_for_tunnel()
        self.claim(
            "the namespace's workloads are captured, nothing was restarted",
            is_held=all(process.poll() is None for process in stage.watched.values()),
            evidence=f"{len(members)} workloads in {time.monotonic() - begun:.1f} s",
        )

    def after(self) -> None:
        with self._wire() as capture:
            body = self.fetch("client", self.url("web"))
            self.show(f"client$ curl {self.url('web')}\n{body}")
            is_readable = any(capture.contains(text) for text in (REQUEST, SECRET))
            self._claim_only_tunnels(capture, "the same request")
        self.claim(
            "the same request has the same answer", is_held=SECRET.decode() in body, evidence="200, same text"
        )
        self.claim(
            "neither the request nor its answer can be read on the wire any more",
            is_held=not is_readable,
            evidence="the capture holds neither text",
        )

    def identities(self) -> None:
        client, web = ACTOR["client"].spiffe_id, ACTOR["web"].spiffe_id
        flow = self.flow(
            "beta", lambda one: one.get("dst.workload") == "web" and one.get("src.identity") == client
        )
        self.say("the ztunnel of beta, from the certificates of the handshake:")
        self.show(f"src.identity={flow.get('src.identity')}\ndst.identity={flow.get('dst.identity')}")
        self.claim(
            "both ends proved their identity to each other",
            is_held=flow.get("src.identity") == client and flow.get("dst.identity") == web,
            evidence=f"{flow.get('src.identity')} -> {flow.get('dst.identity')}",
        )
        serial, names = self._probe(
            "outsider", "web"
        )  # a captured workload's connections would be redirected
        held = {str(chain) for chain in self._serials("beta", web)}
        self.say(f"a TLS handshake with web:{HBONE_PORT} from outside the mesh, read by openssl:")
        self.show(f"serial {serial}, {', '.join(names)}")
        self.claim(
            "the certificate on the wire is web's, the one that its ztunnel holds",
            is_held=names == [web] and serial in held,
            evidence=f"serial {serial[:12]}..., {', '.join(names)}",
        )

    def server_first(self) -> None:
        letter = RUN / "mail.txt"
        letter.write_text(MAIL)
        place = self.stage.workload("mail")
        address = f"smtp://{place.ipv4}:25"
        with self._wire() as capture:
            done = self.stage.lab.run(
                "client",
                [
                    *("curl", "-sS", "-v", "--max-time", "10", address),
                    *("--mail-from", "client@shop.example", "--mail-rcpt", "orders@shop.example"),
                    *("--upload-file", str(letter)),
                ],
                check=False,
            )
            self._claim_only_tunnels(capture, "the mail")
        greeting = next((line[2:] for line in done.stderr.splitlines() if line.startswith("< 220")), "")
        self.show(f"client$ curl {address} --upload-file mail.txt\n{greeting}")
        inbox = RUN / "logs" / "mail.log"
        has_arrived = self.eventually(lambda: "chanterelles" in inbox.read_text() or None)
        self.claim(
            "a server-first protocol works: the mail server greeted and took the letter",
            is_held=done.returncode == 0 and bool(greeting) and bool(has_arrived),
            evidence=greeting or done.stderr.strip()[-80:],
        )

    def addresses(self) -> None:
        client = self.stage.workload("client")
        web = self.stage.workload("web")
        targets = {
            "IPv4": (f"http://{web.ipv4}/order.txt", client.ipv4),
            "IPv6": (f"http://[{web.ipv6}]/order.txt", client.ipv6),
            "service IPv4": (f"http://{WEB_VIP_IPV4}/order.txt", client.ipv4),
            "service IPv6": (f"http://[{WEB_VIP_IPV6}]/order.txt", client.ipv6),
        }
        log = RUN / "nginx" / "access.log"
        with self._wire() as capture:
            for name, (url, expected) in targets.items():
                size = log.stat().st_size
                body = self.fetch("client", url)
                # nginx writes the line after the answer.
                line = self.eventually(lambda size=size: log.read_text()[size:].strip() or None)  # type: ignore[misc]
                seen = line or ""
                self.show(f"nginx access.log: {seen}")
                is_ours = seen.startswith((expected, client.ipv4, client.ipv6))
                self.claim(
                    f"{name}: the request arrives, and nginx sees the client's own address",
                    is_held=SECRET.decode() in body and is_ours,
                    evidence=f"{url} from {seen.partition(' ')[0]}",
                )
            self._claim_only_tunnels(capture, "all of it")

    def policy(self) -> None:
        stage, cache = self.stage, self.stage.workload("cache")
        printed = RUN / "logs" / "redis-cli.log"
        subscriber = stage.lab.popen(
            "client", ["redis-cli", "-h", cache.ipv4], log=printed, stdin=subprocess.PIPE
        )
        assert subscriber.stdin is not None
        subscriber.stdin.write(b"SUBSCRIBE orders\n")
        subscriber.stdin.flush()
        stage.wait_for("the subscription", lambda: "subscribe" in printed.read_text() or None)
        self.say(
            "client holds a redis subscription open. Dropped into the manifests: deny-client-to-cache.yaml"
        )
        since = stage.log_size("beta")
        begun = time.monotonic()
        stage.apply("deny-client-to-cache.yaml")
        self.eventually(lambda: "Error" in printed.read_text() or None)
        text = printed.read_text()
        took = time.monotonic() - begun
        self.show(f"redis-cli: {text.strip().splitlines()[-1]}")
        self.claim(
            "a DENY policy cuts the open connection", is_held="Error" in text, evidence=f"after {took:.2f} s"
        )
        stage.lab.stop(subscriber)
        cut = self.flow("beta", lambda one: "policy change" in str(one.get("error", "")), since)
        self.say("the ztunnel of beta says why:")
        self.show(str(cut.get("error")))
        self.claim(
            "the log explains the cut by the policy's name",
            is_held="shop/deny-client-to-cache" in str(cut.get("error", "")),
            evidence=str(cut.get("error")),
        )
        denied = stage.lab.run("client", ["redis-cli", "-h", cache.ipv4, "PING"], check=False)
        self.claim(
            "a new connection is refused too",
            is_held="PONG" not in denied.stdout,
            evidence=(denied.stderr or denied.stdout).strip()[:80] or "no answer",
        )
        flow = self.flow("beta", lambda one: "policy rejection" in str(one.get("error", "")), since)
        self.claim(
            "the refusal names the policy too",
            is_held="shop/deny-client-to-cache" in str(flow.get("error", "")),
            evidence=str(flow.get("error")),
        )
        self.claim(
            "everything else goes on",
            is_held=SECRET.decode() in self.fetch("client", self.url("web")),
            evidence="web answers",
        )

    def strict(self) -> None:
        stage = self.stage
        before = self.fetch("outsider", self.url("web"))
        self.claim(
            "permissive: a workload outside the mesh is served in plaintext",
            is_held=SECRET.decode() in before,
            evidence="outsider got the answer",
        )
        since = stage.log_size("beta")
        stage.apply("strict.yaml")
        refused = self.eventually(self._outsider_refused) or ""
        self.show(f"outsider$ curl {self.url('web')}\n{refused}")
        self.claim(
            "strict: plaintext from outside the mesh is refused",
            is_held=bool(refused),
            evidence=refused or "outsider is still served",
        )
        client_body = self.fetch("client", self.url("web"))
        self.claim(
            "strict: the mesh's own client is served as before",
            is_held=SECRET.decode() in client_body,
            evidence="client got the answer",
        )
        outsider = stage.workload("outsider").ipv4
        flow = self.flow(
            "beta",
            lambda one: str(one.get("src.addr", "")).startswith(outsider) and bool(one.get("error")),
            since,
        )
        self.claim(
            "the refusal is logged with its reason",
            is_held="denied" in str(flow.get("error")),
            evidence=str(flow.get("error")),
        )

    # --- means ---

    def url(self, name: str) -> str:
        return f"http://{self.stage.workload(name).ipv4}/order.txt"

    def _outsider_refused(self) -> str | None:
        answer = self.fetch("outsider", self.url("web"))
        return None if SECRET.decode() in answer else answer

    def _wait_for_tunnel(self) -> None:
        """Both ztunnels know that the peers are captured: a request crosses by the tunnel alone."""

        def look() -> bool | None:
            with self._wire() as capture:
                self.fetch("client", self.url("web"))
                return HBONE_PORT in capture.destination_ports() or None

        self.stage.wait_for("the first tunnel between the nodes", look)

    def _wire(self) -> Capture:
        return self.stage.lab.capture("beta")

    def _readable(self, capture: Capture) -> Iterator[bytes]:
        for segment in capture.segments():
            yield from segment.payload.split(b"\r\n" if REQUEST in segment.payload else b"\n")

    def _claim_only_tunnels(self, capture: Capture, what: str) -> None:
        """Every byte of TCP on the link belongs to a TLS connection with port 15008."""
        segments = [segment for segment in capture.segments() if segment.payload]
        strangers = {segment.ports for segment in segments if HBONE_PORT not in segment.ports}
        hello = [segment for segment in segments if segment.payload[:2] in TLS_RECORDS]
        self.claim(
            f"{what} crossed the link as TLS to port {HBONE_PORT} and nothing else",
            is_held=bool(hello) and not strangers,
            evidence=f"{len(segments)} segments with data, {len(strangers)} connections beside the tunnel",
        )

    def _probe(self, who: str, whom: str) -> tuple[str, list[str]]:
        """Serial and SPIFFE IDs of the certificate that a handshake with the inbound port brings."""
        target = f"{self.stage.workload(whom).ipv4}:{HBONE_PORT}"
        done = self.stage.lab.run(
            who, ["openssl", "s_client", "-connect", target, "-alpn", "h2", "-tls1_3"], stdin="", check=False
        )
        begin = done.stdout.find("-----BEGIN CERTIFICATE-----")
        end = done.stdout.find("-----END CERTIFICATE-----")
        if begin < 0 or end < 0:
            return "none", [done.stderr.strip()[-100:] or "no certificate"]
        pem = done.stdout[begin : end + len("-----END CERTIFICATE-----")]
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(certificate.serial_number), names.get_values_for_type(x509.UniformResourceIdentifier)

    def _serials(self, node: str, identity: str) -> Iterator[str]:
        """Serial numbers of the leaf certificates that a node's ztunnel holds for an identity."""
        for one in self.stage.certificates(node):
            chain = one.get("certChain")
            if one.get("identity") == identity and isinstance(chain, list):
                for certificate in chain[:1]:
                    pem = base64.b64decode(certificate["pem"])
                    yield str(x509.load_pem_x509_certificate(pem).serial_number)
