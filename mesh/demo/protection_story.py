"""The third act of the demo: who may do what, how often, and a filter that is changed while it works."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from mesh.demo.layout import RUN, STATUS_PORT
from mesh.demo.request_story import STORE, pairs
from mesh.demo.teller import Chapter, Teller

ISSUER: Final = "https://issuer.demo"
ACCOUNT: Final = f"{STORE}account"
LIMITED: Final = f"{STORE}limited"
ALLOWED_AT_ONCE: Final = 5  # `burst` of store-limit.yaml
ASKED: Final = 12
LOG: Final = RUN / "logs" / "agent-beta.log"  # the node agent runs the waypoint: what it says is here
EMPTY_SET: Final = '{"keys": []}'


class ProtectionStory(Teller):
    """Needs the second act's stage: the store's requests pass the waypoint."""

    def chapters(self) -> Sequence[Chapter]:
        """In order; each leaves what it applied in force."""
        return (
            ("Nobody deletes", self.method),
            ("Only buyers see their account", self.tokens),
            ("A rate limit", self.limit),
            ("A filter in Python, changed live", self.filter),
        )

    # --- chapters ---

    def method(self) -> None:
        self.say("dropped into the manifests: store-deny.yaml")
        self.stage.apply("store-deny.yaml")
        self.eventually(lambda: self._status(STORE, "-X", "DELETE") == "403" or None)
        body = self._curl(STORE, "-X", "DELETE")
        reading = self._status(STORE)
        self.show(f"client$ curl -X DELETE {STORE}\n{body}")
        self.claim(
            "DELETE is denied, GET is not",
            is_held=body == "RBAC: access denied" and reading == "200",
            evidence=f"DELETE: {body}; GET: {reading}",
        )
        reason = self._logged("nobody-deletes")
        self.claim(
            "the waypoint's log names the policy and the rule, the client's answer does not",
            is_held="nobody-deletes" in reason and "nobody-deletes" not in body,
            evidence=reason,
        )

    def tokens(self) -> None:
        ours, forger = ECKey.generate_key("P-256"), ECKey.generate_key("P-256")
        keys = json.dumps(KeySet([ours]).as_dict(private=False))
        self.say("dropped into the manifests: store-tokens.yaml, with the issuer's public key")
        manifest = self.stage.manifest("store-tokens.yaml").replace(EMPTY_SET, keys)
        self.stage.write("store-tokens.yaml", manifest)
        buyer = _bearer(ours, "buyer")
        self.eventually(
            lambda: (self._status(ACCOUNT), self._status(ACCOUNT, *buyer)) == ("403", "200") or None
        )
        seen = {
            "none": self._status(ACCOUNT),
            "guest": self._status(ACCOUNT, *_bearer(ours, "guest")),
            "forged": self._status(ACCOUNT, *_bearer(forger, "buyer")),
            "buyer": self._status(ACCOUNT, *buyer),
        }
        self.show("client$ curl /account, by the token it brings\n" + _lines(seen))
        self.claim(
            "only a buyer's token opens the account; a forged one is worth less than none",
            is_held=seen == {"none": "403", "guest": "403", "forged": "401", "buyer": "200"},
            evidence=", ".join(f"{token}: {status}" for token, status in seen.items()),
        )
        self.claim(
            "what needs no token is as it was",
            is_held=self._status(STORE) == "200",
            evidence="GET / without a token: 200",
        )

    def limit(self) -> None:
        self.say("dropped into the manifests: store-limit.yaml")
        self.stage.apply("store-limit.yaml")
        self.eventually(lambda: "x-ratelimit-limit" in self._head(LIMITED) or None)
        counts = Counter(self._status(LIMITED) for _ in range(ASKED))
        refused = self._head(LIMITED)
        self.show(f"client$ {ASKED} times curl /limited\n{pairs(counts)}")
        self.claim(
            "five requests pass, the rest get 429 and are told when to come back",
            is_held=counts["429"] >= ASKED - ALLOWED_AT_ONCE - 1 and "retry-after" in refused,
            evidence=f"{pairs(counts)}; {_header(refused, 'retry-after')}",
        )
        self.claim(
            "other paths are not limited",
            is_held=all(self._status(STORE) == "200" for _ in range(ASKED)),
            evidence=f"{ASKED} of {ASKED} answered",
        )

    def filter(self) -> None:
        self.say("dropped into the manifests: store-filter.yaml")
        text = self.stage.manifest("store-filter.yaml")
        self.stage.write("store-filter.yaml", text)
        first = self.eventually(lambda: _header(self._head(STORE), "x-filtered") or None) or "nothing"
        self.show(f"client$ curl -I {STORE}\n{first}")
        self.say('changed in the file: WORD = "second"')
        self.stage.write("store-filter.yaml", text.replace('WORD = "first"', 'WORD = "second"'))
        seen: Counter[str] = Counter()
        second = self.eventually(lambda: self._filtered_as("second", seen)) or "nothing"
        self.show(second)
        self.claim(
            "a Python filter changes answers and knows the caller; a new version takes over between requests",
            is_held="first for client" in first and "second for client" in second,
            evidence=f"{first}, then {second}",
        )
        self.stage.write("store-filter.yaml", text.replace("    WORD", "    WORD WORD"))
        held = self.eventually(lambda: self._control_plane_says("store-filter.yaml") or None)
        after = _header(self._head(STORE), "x-filtered")
        self.claim(
            "a version that is no Python is reported, and the last good one goes on",
            is_held=held is not None and "second" in after,
            evidence=f"{(held or 'nothing reported')[:100]}; {after}",
        )
        self.stage.write("store-filter.yaml", text)

    # --- means ---

    def _curl(self, url: str, *options: str) -> str:
        command = ["curl", "-gsS", "--max-time", "5", *options, url]
        done = self.stage.lab.run("client", command, check=False)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()

    def _status(self, url: str, *options: str) -> str:
        return self._curl(url, "-o", "/dev/null", "-w", "%{http_code}", *options)

    def _head(self, url: str) -> str:
        return self._curl(url, "-o", "/dev/null", "-D", "-").lower()

    def _filtered_as(self, word: str, seen: Counter[str]) -> str | None:
        value = _header(self._head(STORE), "x-filtered")
        seen[value] += 1
        return value if word in value else None

    def _logged(self, policy: str) -> str:
        """The policy, rule and clause that a record of the waypoint's access log names."""

        def look() -> str | None:
            lines = LOG.read_text(errors="replace").splitlines()
            found = next((line for line in reversed(lines) if policy in line and line.endswith("}")), None)
            return None if found is None else str(json.loads(found)["policy"])

        return self.eventually(look) or "nothing was logged"

    def _control_plane_says(self, file: str) -> str:
        _, text = self.stage.get(self.stage.lab.management, "127.0.0.1", STATUS_PORT, "/problems")
        found = (one for one in json.loads(text) if one["file"].endswith(file))
        return next((f"{one['object']} {one['path']}: {one['text']}" for one in found), "")


def _bearer(key: ECKey, role: str) -> tuple[str, str]:
    claims = {"iss": ISSUER, "sub": "visitor", "role": role, "exp": int(time.time()) + 600}
    token = jwt.encode({"alg": "ES256"}, claims, key)
    return "-H", f"authorization: Bearer {token}"


def _header(head: str, name: str) -> str:
    return next((line.strip() for line in head.splitlines() if line.startswith(f"{name}:")), "")


def _lines(seen: dict[str, str]) -> str:
    return "\n".join(f"{token:>7}: {status}" for token, status in seen.items())
