"""The CA client: what it asks, and which answers it believes (ztunnel-facts 6.2, 6.3)."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ca.certificate import key_to_pem, new_key, uri_names
from ca.client import make_csr, read_response, token_source
from ca.errors import ResponseInvalid, TokenNotReadable

from .harness import DAY, NOW, WEB, identity, make_authority

Answer = tuple[ec.EllipticCurvePrivateKey, list[str]]


def _sound() -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        key = new_key()
        issued = make_authority(Path(folder) / "ca").sign(make_csr(key, WEB), WEB, DAY, NOW)
    return key, [issued.leaf, *issued.intermediates, issued.roots_pem]


SOUND = _sound()


@pytest.fixture(name="answer")
def _answer() -> Answer:
    return SOUND


def test_a_request_has_an_empty_subject_and_one_critical_uri() -> None:
    csr = x509.load_pem_x509_csr(make_csr(new_key(), WEB).encode())
    assert len(list(csr.subject)) == 0
    assert csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    assert uri_names(csr) == (str(WEB),)
    assert csr.is_signature_valid


def test_a_sound_answer_becomes_a_credential(answer: Answer) -> None:
    key, chain = answer
    credential = read_response(chain, key, WEB, is_impersonating=True)
    assert credential.chain_pem == tuple(chain[:2])
    assert credential.roots_pem == chain[2]
    assert credential.key_pem == key_to_pem(key)
    assert credential.not_before == NOW - dt.timedelta(minutes=2)
    assert credential.not_after == NOW + DAY


def test_several_roots_are_all_taken_and_broken_ones_left_out(answer: Answer, tmp_path: Path) -> None:
    key, chain = answer
    other = make_authority(tmp_path / "other").roots_pem
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    credential = read_response([*chain[:2], chain[2] + broken + other], key, WEB, is_impersonating=True)
    assert credential.roots_pem == chain[2] + other


def test_a_chain_without_intermediates_is_fine(answer: Answer) -> None:
    key, chain = answer
    assert len(read_response([chain[0], chain[2]], key, WEB, is_impersonating=True).chain_pem) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _chain: [], "empty"),
        (lambda chain: chain[:1], "no root"),
        (lambda chain: ["nonsense", *chain[1:]], "no certificate"),
        (lambda chain: [chain[0], "nonsense", chain[2]], "no certificate"),
        (lambda chain: [*chain[:2], "nonsense"], "no usable root"),
        (lambda chain: [*chain[:2], ""], "no usable root"),
        (lambda chain: [chain[1], *chain[1:]], "another key"),
    ],
)
def test_unsound_answers_are_refused(
    answer: Answer, change: Callable[[list[str]], list[str]], reason: str
) -> None:
    key, chain = answer
    with pytest.raises(ResponseInvalid, match=reason):
        read_response(change(chain), key, WEB, is_impersonating=True)


def test_a_certificate_for_another_identity_is_refused(answer: Answer) -> None:
    key, chain = answer
    with pytest.raises(ResponseInvalid, match="asked for"):
        read_response(chain, key, identity(1), is_impersonating=True)
    assert read_response(chain, key, identity(1), is_impersonating=False).identity == identity(1)


def test_tokens_are_read_anew_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = token_source(str(path))
    with pytest.raises(TokenNotReadable):
        source()
    path.write_text("one\n")
    assert source() == "one"
    path.write_text("two")
    assert source() == "two"
    assert token_source("literal.token")() == "literal.token"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # the library's complaint of one such damage
@given(st.integers(0, 2), st.integers(0, 5000), st.integers(1, 255))
def test_a_damaged_answer_lets_nothing_else_escape(element: int, position: int, flip: int) -> None:
    """Damage of signatures and dates is for TLS to find; here it must only not break the program."""
    key, sound = SOUND
    der = bytearray(ssl.PEM_cert_to_DER_cert(sound[element].strip()))
    der[position % len(der)] ^= flip
    chain = list(sound)
    chain[element] = ssl.DER_cert_to_PEM_cert(bytes(der))
    with suppress(ResponseInvalid):
        read_response(chain, key, WEB, is_impersonating=True)
