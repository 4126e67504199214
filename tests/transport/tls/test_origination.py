"""Which certificate is the wanted server's, and which settings make no context."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.kit.certificates import issue, make_root, shared_root
from transport.tls.errors import PeerRejected, TlsSettingsInvalid
from transport.tls.origination import (
    Credentials,
    check_server,
    is_host_matched,
    make_origination_context,
)


@pytest.mark.parametrize(
    ("pattern", "host", "is_matched"),
    [
        ("a.example", "a.example", True),
        ("A.Example.", "a.eXample", True),
        ("a.example", "b.example", False),
        ("*.b.example", "a.b.example", True),
        ("*.b.example", "x.a.b.example", False),
        ("*.b.example", "b.example", False),
        ("*.b.example", ".b.example", False),
        ("*.example", "a.example", False),  # a wildcard right above the root
        ("*", "a", False),
        ("a*.b.example", "ax.b.example", False),
        ("x.*.example", "x.a.example", False),
        ("*.*.b.example", "x.a.b.example", False),
        ("*.b.example", "*.b.example", False),
        ("", "", False),
    ],
)
def test_a_wildcard_stands_for_one_whole_first_label(pattern: str, host: str, *, is_matched: bool) -> None:
    assert is_host_matched(pattern, host) is is_matched


def der(dns: Sequence[str] = (), uris: Sequence[str] = (), addresses: Sequence[str] = ()) -> bytes:
    extra = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    chain, _ = issue(shared_root(), uris, dns_names=dns, extra_names=extra)
    return x509.load_pem_x509_certificate(chain).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (der(dns=["a.example"]), ("a.example",)),
        (der(dns=["a.example"]), ("x.example", "a.example")),
        (der(uris=["spiffe://a/b"]), ("spiffe://a/b",)),
        (der(addresses=["10.0.0.1"]), ("10.0.0.1",)),
        (der(addresses=["fd00::1"]), ("fd00:0::1",)),
    ],
)
def test_one_name_of_the_certificate_is_enough(certificate: bytes, names: tuple[str, ...]) -> None:
    check_server(certificate, names)


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (der(dns=["a.example"]), "b.example"),
        (der(), "a.example"),
        (der(uris=["spiffe://a/b"]), "spiffe://a/c"),
        (der(dns=["10.0.0.1"]), "10.0.0.1"),  # an address is no host name
        (der(addresses=["10.0.0.1"]), "a.example"),
        (b"nonsense", "a.example"),
    ],
)
def test_anything_else_is_refused(certificate: bytes, name: str) -> None:
    with pytest.raises(PeerRejected):
        check_server(certificate, (name,))


CHAIN, KEY = (each.decode() for each in issue(shared_root(), None))


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(roots_pem="nonsense"),
        Credentials(roots_pem=" \n"),
        Credentials(roots_pem=shared_root().pem, chain_pem=CHAIN),
        Credentials(roots_pem=shared_root().pem, key_pem=KEY),
        Credentials(chain_pem=issue(make_root("x"), None)[0].decode(), key_pem=KEY),
    ],
)
def test_settings_that_cannot_be_used_make_no_context(credentials: Credentials) -> None:
    with pytest.raises(TlsSettingsInvalid):
        make_origination_context(credentials)
