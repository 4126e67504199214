"""Tokens for tests: real keys, and every way to write a token wrongly."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from proto.mycelia import attachment_pb2
from proto.mycelia import authentication_pb2 as pb

ISSUER = "https://issuer.example"
NOW = 1_800_000_000.0


@cache
def key(name: str = "RS256", serial: int = 0) -> Any:
    match name[:2]:
        case "RS" | "PS":
            return RSAKey.generate_key(2048)
        case "ES":
            return ECKey.generate_key({"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[name])
        case _:
            return OKPKey.generate_key("Ed25519")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sign(message: str, algorithm: str = "RS256", serial: int = 0) -> str:
    return b64(JWSRegistry.algorithms[algorithm].sign(message.encode(), key(algorithm, serial)))


def token(
    claims: Any = None, algorithm: str = "RS256", *, serial: int = 0, header: Any = None, **more: Any
) -> str:
    """Signed properly; `claims` are added to the usual ones, or replace them if they are text."""
    head = header if header is not None else {"alg": algorithm, "typ": "JWT"}
    body = claims if isinstance(claims, str) else {"iss": ISSUER, "sub": "me", **(claims or {}), **more}
    texts = [each if isinstance(each, str) else json.dumps(each) for each in (head, body)]
    message = ".".join(b64(text.encode()) for text in texts)
    return f"{message}.{sign(message, algorithm, serial)}"


def key_set(*names: str, serial: int = 0, **fields: Any) -> str:
    keys = [{**key(name, serial).as_dict(private=False), "kid": "", **fields} for name in names or ("RS256",)]
    return json.dumps({"keys": keys})


def rule(**fields: Any) -> pb.JwtRule:
    return pb.JwtRule(**{"issuer": ISSUER, "key_set": key_set(), **fields})


def authentication(
    *rules: pb.JwtRule, name: str = "jwt", namespace: str = "shop", **attachment: Any
) -> pb.RequestAuthentication:
    return pb.RequestAuthentication(
        namespace=namespace,
        name=name,
        attachment=attachment_pb2.Attachment(**(attachment or {"whole_mesh": True})),
        rules=rules or (rule(),),
    )
