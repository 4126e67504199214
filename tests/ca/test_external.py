"""An external CA's files: accepted only as a whole, followed, and never worse than the last good set."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.authority import Authority
from ca.certificate import PrivateKey, key_to_pem, new_key, to_pem
from ca.client import make_csr
from ca.errors import AuthorityExpired, CaError
from ca.external import CERTIFICATE, CHAIN, KEY, ROOTS
from tests.ca.external_files import YEAR, make_ca, write
from tests.ca.harness import DAY, HOUR, NOW, TRUST_DOMAIN, WEB, load, request_for


def open_authority(folder: Path, now: dt.datetime = NOW) -> Authority:
    return Authority.from_files(folder, trust_domain=TRUST_DOMAIN, now=now)


def sign(authority: Authority, now: dt.datetime = NOW) -> x509.Certificate:
    return load(authority.sign(request_for(WEB), WEB, dt.timedelta(), now).leaf)


ROOT = make_ca("root")
MIDDLE = make_ca("middle", ROOT, path_length=1)
ISSUING = make_ca("issuing", MIDDLE, path_length=0)


def test_leaves_carry_the_chain_without_its_root(tmp_path: Path) -> None:
    write(tmp_path, ISSUING, MIDDLE, ROOT, roots=(ROOT,))
    issued = open_authority(tmp_path).sign(request_for(WEB), WEB, dt.timedelta(), NOW)
    assert [load(pem) for pem in issued.intermediates] == [ISSUING.certificate, MIDDLE.certificate]
    assert issued.roots_pem == to_pem(ROOT.certificate)


def test_without_a_chain_file_the_root_signs_the_issuing_ca(tmp_path: Path) -> None:
    issuing = make_ca("issuing", ROOT, path_length=0)
    write(tmp_path, issuing, roots=(ROOT,))
    (tmp_path / CHAIN).unlink()
    assert sign(open_authority(tmp_path)).issuer == issuing.certificate.subject


def test_no_leaf_outlives_any_certificate_above_it(tmp_path: Path) -> None:
    root = make_ca("root", end=NOW + 3 * HOUR)
    write(tmp_path, make_ca("issuing", root), roots=(root,))
    assert sign(open_authority(tmp_path)).not_valid_after_utc == NOW + 3 * HOUR


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_openssl_accepts_what_it_signs(tmp_path: Path, kind: str) -> None:
    """A real handshake, both sides with certificates of the mesh; dates are those of the real clock."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    begin, end = now - DAY, now + YEAR
    key: PrivateKey = ec.generate_private_key(ec.SECP384R1())
    if kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    root = make_ca("root", begin=begin, end=end)
    middle = make_ca("middle", root, path_length=1, begin=begin, end=end)
    write(
        tmp_path / "ca",
        make_ca("issuing", middle, path_length=0, key=key, begin=begin, end=end),
        middle,
        roots=(root,),
    )
    authority = open_authority(tmp_path / "ca", now)
    leaf_key = new_key()
    issued = authority.sign(make_csr(leaf_key, WEB), WEB, dt.timedelta(), now)
    pair = tmp_path / "pair.pem"
    pair.write_text(key_to_pem(leaf_key).decode() + issued.leaf + "".join(issued.intermediates))
    sides = []
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=issued.roots_pem)
        context.load_cert_chain(pair)
        sides.append(context)
    assert handshake(*sides) == (("URI", str(WEB)),)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> object:
    """The client's name as the server sees it; raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return (ends[1].getpeercert() or {})["subjectAltName"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"key": new_key()}, "is not the key of"),
        ({"issuing": make_ca("issuing", MIDDLE, is_ca=False)}, "is not a CA's"),
        ({"issuing": make_ca("issuing", MIDDLE, may_sign=False)}, "may not sign certificates"),
        ({"issuing": make_ca("issuing", MIDDLE, end=NOW - HOUR)}, "is valid from"),
        ({"issuing": make_ca("issuing", MIDDLE, begin=NOW + HOUR)}, "is valid from"),
        ({"issuing": make_ca("issuing", MIDDLE, uri="spiffe://other")}, "configured is trust domain"),
        ({"middle": make_ca("middle", ROOT, path_length=0)}, "out of order or broken"),
        ({"roots": (make_ca("root"),)}, "has signed"),
        ({"roots": ()}, "no readable certificate"),
        ({"chain": ()}, "has signed"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, fault: dict[str, object], said: str) -> None:
    chain = fault.get("chain", (fault.get("middle", MIDDLE),))
    write(
        tmp_path,
        fault.get("issuing", ISSUING),  # type: ignore[arg-type]
        *chain,  # type: ignore[misc]
        roots=fault.get("roots", (ROOT,)),  # type: ignore[arg-type]
        key=fault.get("key"),  # type: ignore[arg-type]
    )
    with pytest.raises(CaError, match=said) as caught:
        open_authority(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_path_length_that_the_chain_exceeds_is_refused(tmp_path: Path) -> None:
    middle = make_ca("middle", ROOT, path_length=0)
    write(tmp_path, make_ca("issuing", middle), middle, roots=(ROOT,))
    with pytest.raises(CaError, match="allows 0 CAs below it, the chain has 1"):
        open_authority(tmp_path)


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, ROOTS])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, ISSUING, MIDDLE, roots=(ROOT,))
    (tmp_path / name).unlink()
    with pytest.raises(CaError, match=f"{name} is missing"):
        open_authority(tmp_path)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ISSUING, MIDDLE, roots=(ROOT,))
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(CaError, match="others could use the keys"):
        open_authority(tmp_path)


def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 1024)
    write(tmp_path, make_ca("issuing", MIDDLE, key=key), MIDDLE, roots=(ROOT,))
    with pytest.raises(CaError, match="2048 bits or more"):
        open_authority(tmp_path)


def test_files_that_are_replaced_one_by_one_never_stop_signing(tmp_path: Path) -> None:
    """Between two files the set does not fit together: the old one signs on, and that is told once."""
    write(tmp_path, ISSUING, MIDDLE, roots=(ROOT,))
    authority = open_authority(tmp_path)
    new_root = make_ca("new root")
    new = make_ca("new issuing", new_root)
    write(tmp_path / "next", new, roots=(ROOT, new_root))
    with structlog.testing.capture_logs() as logs:
        for name in (KEY, CERTIFICATE, CHAIN):
            (tmp_path / "next" / name).replace(tmp_path / name)
            for _ in range(2):
                assert sign(authority).issuer == ISSUING.certificate.subject
                assert authority.roots_pem == to_pem(ROOT.certificate)
        (tmp_path / "next" / ROOTS).replace(tmp_path / ROOTS)
        before = authority.issuer_fingerprint
        assert sign(authority).issuer == new.certificate.subject
    assert authority.issuer_fingerprint != before
    assert authority.roots_pem == to_pem(ROOT.certificate) + to_pem(new_root.certificate)
    events = [entry["event"] for entry in logs]
    assert events == ["external_ca_refused"] * 3 + ["external_ca_accepted"]  # a reason each, not each time


def test_a_set_that_is_not_valid_yet_is_taken_when_it_is(tmp_path: Path) -> None:
    write(tmp_path, ISSUING, MIDDLE, roots=(ROOT,))
    authority = open_authority(tmp_path)
    early = make_ca("early", MIDDLE, begin=NOW + HOUR)
    write(tmp_path, early, MIDDLE, roots=(ROOT,))
    assert sign(authority).issuer == ISSUING.certificate.subject
    assert sign(authority, NOW + 2 * HOUR).issuer == early.certificate.subject


def test_when_the_last_good_set_has_expired_nothing_is_signed(tmp_path: Path) -> None:
    write(tmp_path, make_ca("issuing", ROOT, end=NOW + HOUR), roots=(ROOT,))
    authority = open_authority(tmp_path)
    with pytest.raises(AuthorityExpired):
        sign(authority, NOW + 2 * HOUR)
