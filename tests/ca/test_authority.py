"""The authority's state on disk and the certificates it makes."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from ca.authority import MAX_LIFETIME, Authority
from ca.certificate import uri_names
from ca.errors import (
    AuthorityExpired,
    CaError,
    KeyMismatch,
    LifetimeTooLong,
    LoosePermissions,
    StateNotReadable,
    WrongTrustDomain,
)
from ca.trust_bundle import parse_roots
from transport.spiffe import InvalidSpiffeId, SpiffeId

from .harness import DAY, HOUR, NOW, WEB, load, make_authority, request_for


def issue(authority: Authority, *, ttl: dt.timedelta = DAY, now: dt.datetime = NOW) -> x509.Certificate:
    return load(authority.sign(request_for(WEB), WEB, ttl, now).leaf)


def extension(
    certificate: x509.Certificate, kind: type[x509.ExtensionType]
) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def test_a_leaf_has_istios_form(tmp_path: Path) -> None:
    leaf = issue(make_authority(tmp_path / "ca"))
    san = extension(leaf, x509.SubjectAlternativeName)
    assert san.critical
    assert uri_names(leaf) == (str(WEB),)
    assert len(list(leaf.subject)) == 0
    assert extension(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = extension(leaf, x509.KeyUsage).value
    assert isinstance(usage, x509.KeyUsage)
    assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (True, True, False)
    purposes = extension(leaf, x509.ExtendedKeyUsage).value
    assert isinstance(purposes, x509.ExtendedKeyUsage)
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.not_valid_before_utc == NOW - dt.timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + DAY
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


def test_the_chain_verifies_against_the_bundle(tmp_path: Path) -> None:
    issued = make_authority(tmp_path / "ca").sign(request_for(WEB), WEB, DAY, NOW)
    store = Store([load(block) for block in parse_roots(issued.roots_pem).blocks])
    verifier = PolicyBuilder().store(store).time(NOW).build_client_verifier()
    verified = verifier.verify(load(issued.leaf), [load(pem) for pem in issued.intermediates])
    assert verified.chain[-1] == load(issued.roots_pem)
    assert len(verified.chain) == 3


@pytest.mark.parametrize(
    ("ttl", "lifetime"),
    [(dt.timedelta(), DAY), (-DAY, DAY), (HOUR, HOUR), (MAX_LIFETIME, MAX_LIFETIME)],
    ids=["zero", "negative", "an hour", "the maximum"],
)
def test_lifetimes(tmp_path: Path, ttl: dt.timedelta, lifetime: dt.timedelta) -> None:
    assert issue(make_authority(tmp_path / "ca"), ttl=ttl).not_valid_after_utc == NOW + lifetime


def test_a_lifetime_above_the_maximum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LifetimeTooLong):
        issue(make_authority(tmp_path / "ca"), ttl=MAX_LIFETIME + dt.timedelta(seconds=1))


def test_a_leaf_never_outlives_its_signer(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    signer = load(authority.sign(request_for(WEB), WEB, DAY, NOW).intermediates[0])
    leaf = issue(authority, now=signer.not_valid_after_utc - HOUR)
    assert leaf.not_valid_after_utc == signer.not_valid_after_utc
    with pytest.raises(AuthorityExpired):
        issue(authority, now=signer.not_valid_after_utc)


def test_the_signer_accepts_a_clock_a_day_behind(tmp_path: Path) -> None:
    assert issue(make_authority(tmp_path / "ca"), now=NOW - DAY).not_valid_after_utc == NOW


def test_identities_of_another_trust_domain_are_not_signed(tmp_path: Path) -> None:
    who = SpiffeId("elsewhere.test", "shop", "web")
    with pytest.raises(WrongTrustDomain):
        make_authority(tmp_path / "ca").sign(request_for(who), who, DAY, NOW)


def test_loading_again_gives_the_same_authority(tmp_path: Path) -> None:
    first = make_authority(tmp_path / "ca")
    again = make_authority(tmp_path / "ca", now=NOW + 30 * DAY)
    assert again.roots_pem == first.roots_pem
    assert issue(again).issuer == issue(first).issuer
    before, after = (authority.sign(request_for(WEB), WEB, DAY, NOW) for authority in (first, again))
    assert before.intermediates == after.intermediates


def test_files_have_safe_permissions_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_authority(tmp_path / "ca")
    finally:
        os.umask(old)
    modes = {
        path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")
    }
    root = next(name for name in modes if name.startswith("ca/roots/"))
    assert modes == {
        "ca": 0o700,
        "ca/.lock": 0o600,
        "ca/root.pem": 0o600,
        "ca/issuing.pem": 0o600,
        "ca/roots": 0o700,
        root: 0o644,
    }


@pytest.mark.parametrize(("name", "mode"), [(".", 0o750), ("root.pem", 0o640), ("issuing.pem", 0o604)])
def test_loose_permissions_are_refused(tmp_path: Path, name: str, mode: int) -> None:
    make_authority(tmp_path / "ca")
    (tmp_path / "ca" / name).chmod(mode)
    with pytest.raises(LoosePermissions, match="chmod"):
        make_authority(tmp_path / "ca")


def test_a_link_instead_of_a_key_is_refused(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca")
    path = tmp_path / "ca" / "issuing.pem"
    path.rename(tmp_path / "elsewhere.pem")
    path.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(StateNotReadable):
        make_authority(tmp_path / "ca")


def _swap_keys(folder: Path) -> None:
    root, issuing = (folder / name for name in ("root.pem", "issuing.pem"))
    marker = "-----END PRIVATE KEY-----\n"
    key = root.read_text().split(marker)[0]
    issuing.write_text(key + marker + issuing.read_text().split(marker)[1])


def _truncate(folder: Path) -> None:
    (folder / "issuing.pem").write_text((folder / "issuing.pem").read_text()[:300])


def _empty(folder: Path) -> None:
    (folder / "issuing.pem").write_text("")


def _key_only(folder: Path) -> None:
    path = folder / "issuing.pem"
    path.write_text(path.read_text().split("-----BEGIN CERTIFICATE-----")[0])


def _foreign_root(folder: Path) -> None:
    other = make_authority(folder.parent / "other")
    shutil.rmtree(folder / "roots")
    (folder / "roots").mkdir(mode=0o700)
    (folder / "roots" / "x.pem").write_text(other.roots_pem)
    (folder / "root.pem").unlink()


def _no_keys(folder: Path) -> None:
    (folder / "root.pem").unlink()
    (folder / "issuing.pem").unlink()


def _leaf_as_signer(folder: Path) -> None:
    authority = make_authority(folder)
    pair = authority.server_credential(["x.test"], [], now=NOW)
    (folder / "issuing.pem").write_text(pair.key_pem.decode() + pair.chain_pem)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_swap_keys, KeyMismatch),
        (_truncate, StateNotReadable),
        (_empty, StateNotReadable),
        (_key_only, StateNotReadable),
        (_foreign_root, KeyMismatch),
        (_no_keys, StateNotReadable),
        (_leaf_as_signer, StateNotReadable),
    ],
)
def test_damaged_state_is_refused_and_left_alone(
    tmp_path: Path, damage: Callable[[Path], None], error: type[CaError]
) -> None:
    folder = tmp_path / "ca"
    make_authority(folder)
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    with pytest.raises(error):
        make_authority(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.pem")} == before


def test_an_expired_authority_is_refused_with_its_dates(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca")
    with pytest.raises(AuthorityExpired, match="expired at 2040"):
        make_authority(tmp_path / "ca", now=NOW + 11 * 365 * DAY)
    with pytest.raises(AuthorityExpired, match="not valid before"):
        make_authority(tmp_path / "ca", now=NOW - 3 * DAY)


def test_another_trust_domain_is_refused(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca")
    with pytest.raises(WrongTrustDomain):
        make_authority(tmp_path / "ca", trust_domain="other.test")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x\0"])
def test_an_impossible_trust_domain_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        make_authority(tmp_path / "ca", trust_domain=name)
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize("lost", [["issuing.pem"], ["roots"], ["roots", "issuing.pem"]])
def test_a_creation_that_was_cut_short_is_completed(tmp_path: Path, lost: list[str]) -> None:
    """The order is root.pem, roots/, issuing.pem: each prefix of it is completed at the next start."""
    first = make_authority(tmp_path / "ca")
    for name in lost:
        path = tmp_path / "ca" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert make_authority(tmp_path / "ca").roots_pem == first.roots_pem


def test_the_root_key_may_be_taken_offline(tmp_path: Path) -> None:
    first = make_authority(tmp_path / "ca")
    (tmp_path / "ca" / "root.pem").unlink()
    again = make_authority(tmp_path / "ca")
    assert again.roots_pem == first.roots_pem
    issue(again)


def test_an_issuing_ca_past_half_of_its_life_is_replaced_under_the_same_root(tmp_path: Path) -> None:
    first = make_authority(tmp_path / "ca")
    later = NOW + 3 * 365 * DAY
    again = make_authority(tmp_path / "ca", now=later)
    old, new = (authority.sign(request_for(WEB), WEB, DAY, later) for authority in (first, again))
    assert old.intermediates != new.intermediates
    assert old.roots_pem == new.roots_pem
    (tmp_path / "ca" / "root.pem").unlink()
    with pytest.raises(AuthorityExpired):
        make_authority(tmp_path / "ca", now=later + 6 * 365 * DAY)


def test_a_second_root_joins_the_bundle_without_a_restart(tmp_path: Path) -> None:
    authority, other = make_authority(tmp_path / "ca"), make_authority(tmp_path / "other")
    own = authority.roots_pem
    (tmp_path / "ca" / "roots" / "next.pem").write_text(other.roots_pem)
    issued = authority.sign(request_for(WEB), WEB, DAY, NOW)
    assert set(parse_roots(issued.roots_pem).blocks) == {own, other.roots_pem}
    (tmp_path / "ca" / "roots" / "next.pem").write_text("half a fi")
    assert authority.roots_pem == issued.roots_pem


def test_two_processes_that_start_together_share_one_authority(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        authorities = list(pool.map(lambda _: make_authority(tmp_path / "ca"), range(4)))
    assert len({authority.roots_pem for authority in authorities}) == 1


def test_a_server_certificate_is_no_workload_certificate(tmp_path: Path) -> None:
    pair = make_authority(tmp_path / "ca").server_credential(["control.test"], ["127.0.0.1", "::1"], now=NOW)
    leaf = load(pair.chain_pem)
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["control.test"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert uri_names(leaf) == ()
    purposes = extension(leaf, x509.ExtendedKeyUsage).value
    assert isinstance(purposes, x509.ExtendedKeyUsage)
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
