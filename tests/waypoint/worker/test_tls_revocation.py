"""Revocation lists at TLS to endpoints: a revoked server gets nothing, nor one that no list speaks for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from tests.kit.certificates import issue, make_intermediate, make_root, revocations, shared_root
from tests.waypoint.worker.kit import exchange, read_all
from tests.waypoint.worker.test_tls import GET, NAME, TlsServer, answering, failure_of, proxy_to, trusting
from transport.tls.errors import TlsSettingsInvalid
from transport.tls.origination import Credentials, make_origination_context


def test_a_server_that_no_list_revokes_is_spoken_to(tmp_path: Path) -> None:
    other = issue(shared_root(), None, dns_names=[NAME])[0]
    tls = trusting(crl_pem=revocations(other))
    with TlsServer(answering, tmp_path) as server, proxy_to(server.endpoint(tls)) as proxy:
        assert exchange(proxy.port, GET).endswith(b"hello")


def test_a_chain_needs_a_list_of_each_of_its_issuers(tmp_path: Path) -> None:
    between = make_intermediate(shared_root(), "between")
    leaf = issue(between, None, dns_names=[NAME])
    both = trusting(crl_pem=revocations() + revocations(by=between))
    with TlsServer(answering, tmp_path, leaf) as server, proxy_to(server.endpoint(both)) as proxy:
        assert exchange(proxy.port, GET).endswith(b"hello")
    with (
        TlsServer(lambda sock: sock.close(), tmp_path, leaf) as server,
        proxy_to(server.endpoint(trusting(crl_pem=revocations()))) as proxy,
    ):
        exchange(proxy.port, GET)
        assert "unable_to_get_certificate_CRL" in failure_of(proxy)[1]


@pytest.mark.parametrize("flaw", ["revoked", "expired", "of another"])
def test_a_server_that_is_revoked_or_for_whom_no_list_speaks_gets_nothing(tmp_path: Path, flaw: str) -> None:
    own = issue(shared_root(), None, dns_names=[NAME])
    pem, reason = {
        "revoked": (revocations(own[0]), "certificate_revoked"),
        "expired": (revocations(until=dt.datetime.now(dt.UTC) - dt.timedelta(days=1)), "CRL_has_expired"),
        "of another": (revocations(by=make_root("another")), "unable_to_get_certificate_CRL"),
    }[flaw]
    got: list[bytes] = []
    with (
        TlsServer(lambda sock: got.append(read_all(sock)), tmp_path, own) as server,
        proxy_to(server.endpoint(trusting(crl_pem=pem))) as proxy,
    ):
        assert exchange(proxy.port, GET).startswith(b"HTTP/1.1 503")
        flag, details, _ = failure_of(proxy)
        assert flag == "UF"
        assert reason in details
    assert not any(got)


@pytest.mark.parametrize("pem", ["nonsense", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_what_is_no_list_is_no_setting(pem: str) -> None:
    with pytest.raises(TlsSettingsInvalid, match="revocation lists"):
        make_origination_context(Credentials(shared_root().pem, crl_pem=pem))
    with pytest.raises(TlsSettingsInvalid, match="revocation lists"):
        make_origination_context(Credentials(shared_root().pem, crl_pem=revocations() + shared_root().pem))
