"""Node tokens: what is accepted, and every way to be refused."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from ca.errors import InvalidNodeName, LoosePermissions, NodeTokenRejected, StateNotReadable
from ca.node_token import KEY_FILE, NodeTokens, bearer_token
from transport.grpc.metadata import Metadata

from .harness import DAY, HOUR, NOW


@pytest.fixture(name="tokens", scope="module")
def _tokens(tmp_path_factory: pytest.TempPathFactory) -> NodeTokens:
    return NodeTokens.load_or_create(tmp_path_factory.mktemp("tokens") / "state")


def test_a_minted_token_names_its_node(tokens: NodeTokens) -> None:
    token = tokens.mint("node-a.example", DAY, NOW)
    assert tokens.verify(token, NOW) == "node-a.example"
    assert tokens.verify(token, NOW + DAY) == "node-a.example"
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["aud"], claims["sub"]) == ("istio-ca", "node:node-a.example")


def test_the_key_survives_a_restart_and_removing_it_revokes(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    token = NodeTokens.load_or_create(folder).mint("a", DAY, NOW)
    assert NodeTokens.load_or_create(folder).verify(token, NOW) == "a"
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (folder / KEY_FILE).unlink()
    with pytest.raises(NodeTokenRejected):
        NodeTokens.load_or_create(folder).verify(token, NOW)


def test_loose_or_broken_keys_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    NodeTokens.load_or_create(folder)
    (folder / KEY_FILE).chmod(0o644)
    with pytest.raises(LoosePermissions):
        NodeTokens.load_or_create(folder)
    (folder / KEY_FILE).chmod(0o600)
    (folder / KEY_FILE).write_text("nonsense")
    with pytest.raises(StateNotReadable):
        NodeTokens.load_or_create(folder)


@pytest.mark.parametrize("moment", [NOW + DAY + HOUR, NOW - HOUR], ids=["expired", "from the future"])
def test_validity_is_checked(tokens: NodeTokens, moment: Any) -> None:
    with pytest.raises(NodeTokenRejected):
        tokens.verify(tokens.mint("a", DAY, NOW), moment)


GOOD = {
    "sub": "node:a",
    "aud": "istio-ca",
    "iat": int(NOW.timestamp()),
    "exp": int((NOW + DAY).timestamp()),
}


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "other"},
        {"aud": ["istio-ca", "other"]},
        {"aud": None},
        {"sub": "a"},
        {"sub": "node:"},
        {"sub": "node:a/b"},
        {"sub": ["node:a"]},
        {"exp": None},
        {"exp": "never"},
        {"exp": True},
        {"iat": None},
    ],
)
def test_claims_must_be_a_nodes(tokens: NodeTokens, change: dict[str, Any]) -> None:
    key = tokens._key
    with pytest.raises(NodeTokenRejected):
        tokens.verify(jwt.encode({"alg": "ES256"}, {**GOOD, **change}, key), NOW)
    assert tokens.verify(jwt.encode({"alg": "ES256"}, GOOD, key), NOW) == "a"


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def head_and_body(algorithm: str) -> str:
    return f"{base64url(json.dumps({'alg': algorithm}).encode())}.{base64url(json.dumps(GOOD).encode())}"


def unsigned(_tokens: NodeTokens) -> str:
    return f"{head_and_body('none')}."


def public_key_as_shared_secret(tokens: NodeTokens) -> str:
    signed = head_and_body("HS256")
    mac = hmac.digest(tokens._key.as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64url(mac)}"


def signed_with_other_key(_tokens: NodeTokens) -> str:
    return jwt.encode({"alg": "ES256"}, GOOD, ECKey.generate_key("P-256", private=True))


def own_key_in_header(_tokens: NodeTokens) -> str:
    key = ECKey.generate_key("P-256", private=True)
    return jwt.encode({"alg": "ES256", "jwk": key.as_dict(private=False)}, GOOD, key)


@pytest.mark.parametrize(
    "forge", [unsigned, public_key_as_shared_secret, signed_with_other_key, own_key_in_header]
)
def test_forgeries_are_refused(tokens: NodeTokens, forge: Callable[[NodeTokens], str]) -> None:
    with pytest.raises(NodeTokenRejected):
        tokens.verify(forge(tokens), NOW)


@given(st.text(max_size=200))
def test_garbage_is_refused(tokens: NodeTokens, text: str) -> None:
    with pytest.raises(NodeTokenRejected):
        tokens.verify(text, NOW)


@given(st.integers(0, 1000), st.characters(categories=["Ll", "Lu", "Nd"], max_codepoint=127))
def test_a_damaged_token_is_refused(tokens: NodeTokens, position: int, letter: str) -> None:
    token = tokens.mint("a", DAY, NOW)
    position %= len(token)
    last_of_part = {token.index(".") - 1, token.rindex(".") - 1, len(token) - 1}
    if token[position] in {letter, "."} or position in last_of_part:  # spare bits of base64's last letter
        return
    with pytest.raises(NodeTokenRejected):
        tokens.verify(token[:position] + letter + token[position + 1 :], NOW)


def test_a_huge_token_is_refused(tokens: NodeTokens) -> None:
    with pytest.raises(NodeTokenRejected, match="long"):
        tokens.verify("a" * 5000, NOW)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a/b", "é", "a" * 254, "a\n", "node:a"])
def test_impossible_node_names(tokens: NodeTokens, name: str) -> None:
    with pytest.raises(InvalidNodeName):
        tokens.mint(name, DAY, NOW)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Basic abc")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
    ],
)
def test_only_one_bearer_header_counts(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(NodeTokenRejected):
        bearer_token(Metadata(headers))


def test_the_scheme_is_case_insensitive(tokens: NodeTokens) -> None:
    token = tokens.mint("a", DAY, NOW)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert tokens.authenticate(Metadata([("authorization", f"{scheme} {token}")]), NOW) == "a"


def test_keys_of_another_curve_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    key = ECKey.import_key(ec.generate_private_key(ec.SECP384R1()))
    (folder / KEY_FILE).touch(0o600)
    (folder / KEY_FILE).write_bytes(key.as_pem(private=True))
    with pytest.raises(StateNotReadable):
        NodeTokens.load_or_create(folder)
