"""Tokens and who accepts them: authz-cases 7, and what an attacker writes instead of a token."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.mycelia import authentication_pb2 as pb
from tests.waypoint.state.token_builders import (
    ISSUER,
    NOW,
    authentication,
    b64,
    key,
    key_set,
    rule,
    sign,
    token,
)
from waypoint.state import jwt
from waypoint.state.authentication import Authenticator, Invalid, Valid, parse_authentication
from waypoint.state.errors import RoutesRejected
from waypoint.state.jwt_keys import read_key_set


def judge(
    text: str, *rules: pb.JwtRule, now: float = NOW, headers: Sequence[tuple[str, str]] = ()
) -> list[Valid] | Invalid:
    made = authentication(*rules)
    policy = parse_authentication("shop/jwt", made.SerializeToString())
    judging = Authenticator([policy])
    lines = [("authorization", f"Bearer {text}"), *headers]
    found = judging.find([(name.encode(), value.encode()) for name, value in lines], None)
    assert found
    return judging.judge(found, now)


def fault(text: str, *rules: pb.JwtRule, now: float = NOW) -> tuple[int, str]:
    result = judge(text, *rules, now=now)
    assert isinstance(result, Invalid)
    return result.status, result.reason


ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_verifies_and_a_changed_bit_does_not(algorithm: str) -> None:
    own = rule(key_set=key_set(algorithm))
    good = token(algorithm=algorithm)
    (valid,) = judge(good, own)  # type: ignore[misc]
    assert valid.claims["sub"] == "me"
    head, body, _ = good.split(".")
    other = b64(json.dumps({"iss": ISSUER, "sub": "you"}).encode())
    assert fault(f"{head}.{other}.{good.rpartition('.')[2]}", own) == (401, jwt.BAD_SIGNATURE)
    assert fault(f"{head}.{body}.{sign(f'{head}.{body}', algorithm, 1)}", own) == (401, jwt.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": NOW - 61}, jwt.EXPIRED),
        ({"exp": NOW - 59}, None),
        ({"exp": NOW + 9}, None),
        ({"exp": NOW + 0.5}, None),
        ({"nbf": NOW + 61}, jwt.NOT_YET),
        ({"nbf": NOW + 59}, None),
        ({"exp": "soon"}, jwt.BAD_TIME),
        ({"exp": True}, jwt.BAD_TIME),
        ({"nbf": None}, jwt.BAD_TIME),
        ({"exp": 10**400}, jwt.BAD_TIME),
        ({"nbf": -(10**400)}, jwt.BAD_TIME),
        ({"name": "\ud800"}, jwt.BAD_PAYLOAD),
        ({"name": "\U0001f600"}, None),
        ({"exp": 1e400}, jwt.BAD_PAYLOAD),
        ({"iss": "https://other"}, jwt.UNKNOWN_ISSUER),
        ({"iss": 7}, jwt.UNKNOWN_ISSUER),
        ({"iss": ISSUER + "/"}, jwt.UNKNOWN_ISSUER),
    ],
)
def test_claims_about_validity(claims: dict[str, Any], expected: str | None) -> None:
    if expected is None:
        assert isinstance(judge(token(claims)), list)
    else:
        assert fault(token(claims)) == (401, expected)


@pytest.mark.parametrize(
    ("audience", "wanted", "is_good"),
    [
        ("a", ["a", "b"], True),
        (["x", "b"], ["a", "b"], True),
        ("c", ["a"], False),
        (["c", 7], ["a", "7"], False),
        (None, ["a"], False),
        (None, [], True),
        ("anything", [], True),
    ],
)
def test_audiences(audience: Any, wanted: list[str], is_good: bool) -> None:
    text = token({} if audience is None else {"aud": audience})
    if is_good:
        assert isinstance(judge(text, rule(audiences=wanted)), list)
    else:
        assert fault(text, rule(audiences=wanted)) == (403, jwt.BAD_AUDIENCE)


# ---- what an attacker writes ----


def _unsigned(header: Any, signature: str = "") -> str:
    body = b64(json.dumps({"iss": ISSUER, "sub": "admin"}).encode())
    return f"{b64(json.dumps(header).encode())}.{body}.{signature}"


def _confused() -> str:
    """HMAC with the public key's text for a secret."""
    message = _unsigned({"alg": "HS256"}).rstrip(".")
    secret = key().as_pem(private=False)
    return f"{message}.{b64(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"


GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")
DEEP = '{"iss":"' + ISSUER + '","a":' + "[" * 500 + "]" * 500 + "}"
ATTACKS = {
    "none": _unsigned({"alg": "none"}),
    "none with a signature": _unsigned({"alg": "none"}, SIGNATURE),
    "None": _unsigned({"alg": "None"}, SIGNATURE),
    "no algorithm": _unsigned({}, SIGNATURE),
    "an algorithm that is a list": _unsigned({"alg": ["RS256"]}, SIGNATURE),
    "key confusion": _confused(),
    "HS256 with a real signature": _unsigned({"alg": "HS256"}, SIGNATURE),
    "an elliptic algorithm with an RSA key": token(header={"alg": "ES256"}),
    "no signature": f"{HEAD}.{BODY}.",
    "two pieces": f"{HEAD}.{BODY}",
    "four pieces": f"{GOOD}.{SIGNATURE}",
    "five pieces, as encrypted": f"{GOOD}.{SIGNATURE}.{SIGNATURE}",
    "cut": GOOD[:-3],
    "padding": GOOD + "==",
    "the other alphabet": GOOD.replace("-", "+").replace("_", "/") + "/",
    "white space inside": f"{HEAD} .{BODY}.{SIGNATURE}",
    "empty": ".",
    "a header that is a list": f"{b64(b'[]')}.{BODY}.{SIGNATURE}",
    "a header that is no JSON": f"{b64(b'{')}.{BODY}.{SIGNATURE}",
    "no UTF-8": f"{b64(bytes([0xFF, 0xFE]))}.{BODY}.{SIGNATURE}",
    "kid of another file": token(header={"alg": "RS256", "kid": "../../etc/passwd"}, serial=1),
    "kid as an injection": token(header={"alg": "RS256", "kid": "x' OR '1'='1"}, serial=1),
    "kid that is an object": token(header={"alg": "RS256", "kid": {"a": 1}}),
    "a key of its own": token(
        header={"alg": "RS256", "jwk": key("RS256", 1).as_dict(private=False)}, serial=1
    ),
    "a key's address": token(header={"alg": "RS256", "jku": "http://evil/keys"}, serial=1),
    "critical": token(header={"alg": "RS256", "crit": ["b64"], "b64": False}),
    "an algorithm twice": token(header='{"alg":"none","alg":"RS256"}'),
    "an issuer twice": token('{"iss":"evil","iss":"' + ISSUER + '"}'),
    "not a number": token('{"iss":"' + ISSUER + '","exp":NaN}'),
    "deeply nested": token(DEEP),
    "very deeply nested": token("[" * 5000 + "]" * 5000),
    "huge": token({"fill": "x" * 20_000}),
    "another's key": token(serial=1),
    "an endless time without a real signature": ".".join(
        (HEAD, b64(json.dumps({"iss": ISSUER, "exp": 10**400}).encode()), SIGNATURE)
    ),
    "half a surrogate pair in kid": token(header='{"alg":"RS256","kid":"\\ud800"}'),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_401(name: str) -> None:
    assert fault(ATTACKS[name])[0] == 401


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("Aa0-_.=/ \x00é"))
def test_no_changed_character_is_accepted(place: int, character: str) -> None:
    changed = GOOD[:place] + character + GOOD[place + 1 :]
    if changed != GOOD:
        assert fault(changed)[0] == 401


@given(st.text())
def test_nothing_that_is_no_token_is_one(text: str) -> None:
    assert isinstance(jwt.read_token(text.encode()), str)


# ---- keys ----


def test_a_key_by_name_and_keys_without_names() -> None:
    named = json.loads(key_set("RS256", serial=1, kid="other"))["keys"]
    plain = json.loads(key_set("RS256"))["keys"]
    both = rule(key_set=json.dumps({"keys": named + plain}))
    assert isinstance(judge(token(), both), list)
    assert isinstance(judge(token(header={"alg": "RS256", "kid": "any"}), both), list)
    named[0]["kid"] = "one"
    only = rule(key_set=json.dumps({"keys": named}))
    assert isinstance(judge(token(header={"alg": "RS256", "kid": "one"}, serial=1), only), list)
    assert fault(token(header={"alg": "RS256", "kid": "two"}, serial=1), only) == (401, jwt.NO_KEY)


@pytest.mark.parametrize(
    "fields", [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "RS512"}, {"alg": "HS256"}, {"alg": 7}]
)
def test_a_key_for_something_else_verifies_nothing(fields: dict[str, Any]) -> None:
    found = json.loads(key_set(**fields))["keys"] + json.loads(key_set("ES256"))["keys"]
    assert fault(token(), rule(key_set=json.dumps({"keys": found}))) == (401, jwt.NO_KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"keys":[]}',
        '{"keys":{}}',
        '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}',
        '{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}',
        '{"keys":[null,7,"x"]}',
        "no JSON",
        "[" * 100_000,
    ],
)
def test_what_is_no_key_set_gives_no_keys_and_tokens_are_invalid(text: str) -> None:
    with pytest.raises(RoutesRejected):
        read_key_set(text)
    assert fault(token(), rule(key_set=text)) == (401, jwt.NO_KEY_SET)


def test_rules_of_one_issuer_are_alternatives() -> None:
    rules = (rule(key_set=key_set(serial=1)), rule(audiences=["a"]), rule())
    assert isinstance(judge(token(aud="b"), *rules), list)


# ---- places ----


def places(rules: Sequence[pb.JwtRule], headers: Sequence[tuple[str, str]], query: str = "") -> list[str]:
    policy = parse_authentication("shop/jwt", authentication(*rules).SerializeToString())
    lines = [(name.encode(), value.encode()) for name, value in headers]
    return [each.text.decode() for each in Authenticator([policy]).find(lines, query.encode() or None)]


def test_where_tokens_are_looked_for() -> None:
    default = rule()
    assert places([default], [("authorization", "Bearer t")]) == ["t"]
    assert places([default], [("authorization", "bEARER t")]) == ["t"]
    assert places([default], [("authorization", "Basic t")]) == []
    assert places([default], [("authorization", "Bearer ")]) == []
    assert places([default], [], "a=b&access_token=t") == ["t"]
    assert places([default], [("authorization", "Bearer t")], "access_token=u") == ["t", "u"]
    own = rule(
        headers=[pb.JwtRule.Header(name="x-token", prefix="T:"), pb.JwtRule.Header(name="x-bare")],
        parameters=["tok"],
        cookies=["session"],
    )
    assert places([own], [("authorization", "Bearer t")], "access_token=u") == []
    given_ = [("x-token", "T:a"), ("x-bare", "b"), ("cookie", "x=y; session=c; z"), ("x-token", "a")]
    assert places([own], given_, "tok=d&tok=e") == ["a", "b", "c", "d", "e"]


def test_every_token_must_be_valid() -> None:
    other = rule(headers=[pb.JwtRule.Header(name="x-token")])
    good, bad = token(), token(exp=NOW - 100)
    assert isinstance(judge(good, rule(), other, headers=[("x-token", good)]), list)
    result = judge(good, rule(), other, headers=[("x-token", bad)])
    assert result == Invalid(401, jwt.EXPIRED)
    many = [("x-token", good)] * 40
    assert judge(good, rule(), other, headers=many) == Invalid(401, jwt.TOO_LARGE)


def test_a_remembered_token_expires_all_the_same() -> None:
    policy = parse_authentication("shop/jwt", authentication().SerializeToString())
    judging = Authenticator([policy])
    found = judging.find([(b"authorization", b"Bearer " + token(exp=NOW + 10).encode())], None)
    first = judging.judge(found, NOW)
    assert isinstance(first, list)
    assert judging.judge(found, NOW + 69) == first
    assert judging.judge(found, NOW + 71) == Invalid(401, jwt.EXPIRED)


# ---- claims ----


def test_words_of_scopes() -> None:
    (valid,) = judge(token(scope="read write", permission="a", roles="x y"), rule())  # type: ignore[misc]
    assert (valid.claims["scope"], valid.claims["permission"]) == (["read", "write"], ["a"])
    assert valid.claims["roles"] == "x y"
    (valid,) = judge(token(roles="x y"), rule(space_delimited_claims=["roles"]))  # type: ignore[misc]
    assert valid.claims["roles"] == ["x", "y"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sub", b"me"),
        ("n", b"7"),
        ("flag", b"true"),
        ("deep.er", b"x"),
        ("deep", None),
        ("none", None),
        ("sub.more", None),
        ("real", None),
        ("evil", None),
    ],
)
def test_claims_as_header_values(path: str, value: bytes | None) -> None:
    claims = {"sub": "me", "n": 7, "flag": True, "deep": {"er": "x"}, "real": 1.5, "evil": "a\r\nx: y"}
    assert jwt.claim_text(claims, path) == value
