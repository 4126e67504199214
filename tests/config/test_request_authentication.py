"""RequestAuthentication: validation, attachment, key sets, and the fetching of them from real servers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from config.compile.resource import AUTHENTICATION
from config.jwks.fetch import MAX_BYTES, Fetcher, FetchFailed
from config.jwks.guard import Guard
from config.jwks.keeper import KeySetKeeper, retry_pause_s
from config.jwks.key_set import KeySetUnfit, key_set_text
from config.jwks.store import KeySetStore
from config.registry.key_sets import KeySet
from proto.mycelia import authentication_pb2 as pb
from tests.config.support import Mesh, errors_of, istio, waypoint

TO_GATEWAY = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]"
KEYS = json.dumps({"keys": [{"kty": "RSA", "n": "x", "e": "AQAB"}]})
URI = "https://issuer/keys"


def authentication(rules: str, target: str = TO_GATEWAY, name: str = "jwt") -> str:
    return istio("RequestAuthentication", name, f"{{{target + ', ' if target else ''}jwtRules: [{rules}]}}")


def sent(mesh: Mesh) -> dict[str, pb.RequestAuthentication]:
    return {
        name: pb.RequestAuthentication.FromString(each.payload)
        for name, each in mesh.registry.resources[AUTHENTICATION].items()
    }


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("{}", "issuer"),
        ("{issuer: ''}", "issuer"),
        ("{issuer: me}", "give jwks or jwksUri"),
        ("{issuer: a, jwks: '{', jwksUri: 'http://a/b'}", "no JSON"),
        ("{issuer: a, jwks: '{\"keys\": []}', jwksUri: 'http://a/b'}", "exclude each other"),
        ("{issuer: a, jwks: '[]'}", "JSON Web Key Set"),
        ("{issuer: a, jwksUri: 'ftp://a/b'}", "http or https"),
        ("{issuer: a, jwksUri: 'file:///etc/passwd'}", "http or https"),
        ("{issuer: a, jwksUri: 'http://u:p@a/b'}", "without a user"),
        ("{issuer: a, jwksUri: 'http://a/b', fromHeaders: [{name: 'x y'}]}", "header name"),
        ("{issuer: a, jwksUri: 'http://a/b', outputPayloadToHeader: 'a:b'}", "header name"),
        ("{issuer: a, jwksUri: 'http://a/b', outputClaimToHeaders: [{header: host, claim: a}]}", "HTTP"),
        ("{issuer: a, jwksUri: 'http://a/b', timeout: soon}", "duration"),
        ("{issuer: a, jwksUri: 'http://a/b', timeout: 2m}", "at most 60s"),
        ('{issuer: a, jwks: \'{"keys": [{"kty": "EC", "d": "x"}]}\'}', "private"),
        ("{issuer: a, jwksUri: 'http://a/b', audience: [b]}", "audience"),
        ("{issuer: a, jwksUri: null}", "null"),
    ],
)
def test_what_is_wrong_is_said(rule: str, complaint: str) -> None:
    errors = errors_of(authentication(rule))
    assert errors
    assert complaint in " ".join(errors)


def test_every_field_is_told() -> None:
    rule = f"""{{issuer: me, audiences: [a], jwks: '{KEYS}', fromHeaders: [{{name: X-T, prefix: 'T '}}],
        fromParams: [p], fromCookies: [c], forwardOriginalToken: true, outputPayloadToHeader: X-P,
        outputClaimToHeaders: [{{header: X-C, claim: a.b}}], spaceDelimitedClaims: [roles]}}"""
    mesh = Mesh(waypoint(), authentication(rule.replace("\n", " ")))
    (found,) = sent(mesh)["shop/jwt"].rules
    assert found == pb.JwtRule(
        issuer="me",
        audiences=["a"],
        key_set=KEYS,
        headers=[pb.JwtRule.Header(name="x-t", prefix="T ")],
        parameters=["p"],
        cookies=["c"],
        forwards_token=True,
        payload_header="x-p",
        claim_headers=[pb.JwtRule.ClaimHeader(header="x-c", claim="a.b")],
        space_delimited_claims=["roles"],
    )


def test_only_target_refs_lead_to_a_waypoint() -> None:
    mesh = Mesh(waypoint(), authentication(f"{{issuer: me, jwks: '{KEYS}'}}", target=""))
    assert sent(mesh) == {}
    assert any("NoEffect" in note and "targetRefs" in note for note in mesh.notes())


def test_keys_that_are_fetched_arrive_and_the_last_good_ones_stay() -> None:
    mesh = Mesh(waypoint(), authentication(f"{{issuer: me, jwksUri: '{URI}'}}"))
    registry = mesh.registry
    assert registry.key_sets.wanted == {URI: 5.0}
    assert sent(mesh)["shop/jwt"].rules[0].key_set == ""
    registry.key_set_found(URI, KeySet("", "no answer"))
    assert any("no answer; tokens of this issuer get 401" in note for note in mesh.notes())
    delta = registry.key_set_found(URI, KeySet(KEYS))
    assert [each.name for each in delta.upserts] == ["shop/jwt"]
    assert sent(mesh)["shop/jwt"].rules[0].key_set == KEYS
    assert not any("issuer" in note for note in mesh.notes())
    assert not registry.key_set_found(URI, KeySet(KEYS, "gone")).upserts
    assert any("gone; the last good keys are used" in note for note in mesh.notes())
    mesh.remove("RequestAuthentication", "shop", "jwt")
    assert registry.key_sets.wanted == {}
    assert not registry.key_set_found(URI, KeySet("late"))


def test_an_issuer_without_a_uri_is_asked_itself() -> None:
    mesh = Mesh(waypoint(), authentication("{issuer: 'https://me', timeout: 2s}"))
    assert mesh.registry.key_sets.wanted == {"issuer:https://me": 2.0}


# ---- the guard ----


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::a9fe:a9fe",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::1",
        "no address",
    ],
)
def test_addresses_that_are_never_called(address: str) -> None:
    assert not Guard().is_allowed(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "93.184.216.34", "::1", "2001:db8::1"])
def test_other_addresses_may_be_called_unless_an_operator_says_no(address: str) -> None:
    assert Guard().is_allowed(address)
    assert not Guard(["0.0.0.0/0", "::/0"]).is_allowed(address)


# ---- real servers ----

Respond = Callable[[str], tuple[int, dict[str, str], bytes]]


@contextmanager
def server(respond: Respond) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = respond(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...

    made = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        made.server_close()


def fetcher(*blocked: str) -> Fetcher:
    return Fetcher(Guard(blocked), ssl.create_default_context())


async def test_a_document_is_fetched_over_redirects() -> None:
    def respond(path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/keys?a=b":
            return 302, {"location": "/moved"}, b""
        return (200, {}, KEYS.encode()) if path == "/moved" else (404, {}, b"")

    with server(respond) as base:
        assert await fetcher().get(f"{base}/keys?a=b", 5) == KEYS.encode()


@pytest.mark.parametrize(
    ("status", "headers", "body", "complaint"),
    [
        (404, {}, b"", "status 404"),
        (302, {}, b"", "without a location"),
        (302, {"location": "/again"}, b"", "more than 3 redirects"),
        (302, {"location": "http://169.254.169.254/latest"}, b"", "must not be called"),
        (302, {"location": "http://[::ffff:169.254.169.254]/latest"}, b"", "must not be called"),
        (302, {"location": "file:///etc/passwd"}, b"", "is not followed"),
        (302, {"location": "gopher://x"}, b"", "is not followed"),
        (302, {"location": "/a b"}, b"", "cannot be called"),
        (302, {"location": "/\xe9"}, b"", "cannot be called"),
        (302, {"location": "http://[::1"}, b"", "cannot be called"),
        (302, {"location": "http://a..b/"}, b"", "cannot be called"),
        (200, {}, b"x" * (MAX_BYTES + 1), "more than"),
    ],
)
async def test_what_is_not_fetched(status: int, headers: dict[str, str], body: bytes, complaint: str) -> None:
    with server(lambda _: (status, headers, body)) as base, pytest.raises(FetchFailed) as caught:
        await fetcher().get(f"{base}/keys", 5)
    assert complaint in caught.value.text


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("http://169.254.169.254/latest/meta-data", "must not be called"),
        ("http://0/", "must not be called"),
        ("http://2852039166/", "must not be called"),  # 169.254.169.254 as one number
        ("http://0xa9fea9fe/", "must not be called"),
        ("http://no-such-host.invalid/", "cannot be resolved"),
        ("http://127.0.0.1:1/", "port 1"),
        ("http://127.0.0.1:99999/", "the port is none"),
        ("http://a..b/", "cannot be called"),
        (f"http://{'a' * 70}/", "cannot be called"),
    ],
)
async def test_where_nobody_is_called(uri: str, complaint: str) -> None:
    with pytest.raises(FetchFailed) as caught:
        await fetcher().get(uri, 5)
    assert complaint in caught.value.text


async def test_what_an_operator_forbids_and_silence_that_is_not_waited_for() -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    with pytest.raises(FetchFailed) as caught:
        await fetcher("127.0.0.0/8").get(f"http://127.0.0.1:{port}/", 5)
    assert "must not be called" in caught.value.text
    with pytest.raises(FetchFailed) as caught:
        await fetcher().get(f"http://127.0.0.1:{port}/", 0.05)
    assert "no answer within 0.05 s" in caught.value.text
    await listener[0].aclose()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": [7]}', b'{"keys": []}', b"<html>", b"[" * 100_000],
)
def test_what_is_no_key_set_is_never_taken_for_one(content: bytes) -> None:
    with pytest.raises(KeySetUnfit):
        key_set_text(content)


def test_private_and_unknown_members_do_not_go_on() -> None:
    content = {
        "keys": [{"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "d": "secret", "x5c": ["c"], "kid": "k"}]
    }
    found = json.loads(key_set_text(json.dumps(content).encode()))
    assert found == {"keys": [{"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "kid": "k"}]}


def test_a_saved_set_is_one_sources_only_and_damage_counts_as_none(tmp_path: Path) -> None:
    store = KeySetStore(tmp_path / "sets")
    text = key_set_text(KEYS.encode())
    store.write(URI, text)
    assert store.read(URI) == text
    assert store.read("https://other/keys") == ""
    (file,) = (tmp_path / "sets").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    for damage in (b"", b"[]", b'{"source": "https://other/keys", "keys": ""}', b"{" * 100, bytes(600_000)):
        file.write_bytes(damage)
        assert store.read(URI) == ""
    store.keep_only([])
    assert list((tmp_path / "sets").iterdir()) == []


def test_pauses_between_tries_grow_to_an_hour() -> None:
    assert [retry_pause_s(n) for n in (1, 7, 8, 9, 12, 13, 14, 99)] == [
        *(1.0, 1.0, 60.0, 120.0, 960.0, 1920.0, 3600.0, 3600.0)
    ]


async def test_the_keeper_fetches_discovers_and_keeps_the_last_good(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """Time stands still but for the pauses: twenty minutes pass at once."""
    answers = {"/keys": KEYS.encode()}

    class Scripted:
        async def get(self, uri: str, timeout_s: float) -> bytes:
            await trio.sleep(0)
            if uri == "https://me/.well-known/openid-configuration":
                return b'{"jwks_uri": "https://me/keys"}'
            if uri == "https://me/keys" and "/keys" in answers:
                return answers["/keys"]
            raise FetchFailed(f"{uri}: gone")

    mesh = Mesh(waypoint(), authentication("{issuer: 'https://me'}"))
    seen: list[tuple[str, KeySet]] = []

    def make_keeper() -> KeySetKeeper:
        def note(uri: str, found: KeySet) -> None:
            seen.append((uri, found))

        return KeySetKeeper(mesh.registry, Scripted(), note, KeySetStore(tmp_path / "sets"))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_keeper().run)
        await trio.sleep(10)
        assert seen == [("issuer:https://me", KeySet(json.dumps(json.loads(KEYS), sort_keys=True)))]
        del answers["/keys"]
        await trio.sleep(21 * 60)
        assert seen[-1][1].text == seen[0][1].text
        assert seen[-1][1].problem == "https://me/keys: gone"
        answers["/keys"] = b'{"keys": []}'
        await trio.sleep(2 * 60 * 60)
        assert seen[-1][1] == KeySet(seen[0][1].text, "https://me/keys: the key set has no keys")
        nursery.cancel_scope.cancel()

    del answers["/keys"]
    seen.clear()
    async with trio.open_nursery() as nursery:  # the control plane starts again, and the issuer is away
        nursery.start_soon(make_keeper().run)
        await trio.sleep(1)
        assert seen[0] == ("issuer:https://me", KeySet(key_set_text(KEYS.encode())))
        nursery.cancel_scope.cancel()
