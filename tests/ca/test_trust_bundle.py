"""Bundles of roots: lenient where ztunnel is, never empty, last good one kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import TrustNotUsable
from ca.trust_bundle import MAX_ROOTS, SYSTEM, RootFolder, RootSource, parse_roots

from .harness import make_authority

BROKEN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> list[str]:
    return [make_authority(tmp_path / f"ca-{number}").roots_pem for number in range(2)]


def test_unreadable_blocks_are_left_out_and_counted(roots: list[str]) -> None:
    parsed = parse_roots(roots[0] + BROKEN + "# a comment\r\n" + roots[1] + roots[0])
    assert parsed.blocks == tuple(roots)
    assert parsed.skipped == 1


@pytest.mark.parametrize("text", ["", "hello", BROKEN])
def test_an_empty_bundle_is_an_error(text: str) -> None:
    with pytest.raises(TrustNotUsable):
        parse_roots(text)


@given(st.text(max_size=300))
def test_garbage_is_an_error_and_nothing_else(text: str) -> None:
    with pytest.raises(TrustNotUsable):
        parse_roots(text)


def test_the_number_of_roots_is_bounded(tmp_path: Path) -> None:
    roots = [make_authority(tmp_path / f"many-{number}").roots_pem for number in range(MAX_ROOTS + 1)]
    with pytest.raises(TrustNotUsable, match="at most"):
        parse_roots("".join(roots))


def test_a_root_file_is_followed_and_its_last_good_content_kept(tmp_path: Path, roots: list[str]) -> None:
    path = tmp_path / "root-cert.pem"
    source = RootSource(str(path))
    with pytest.raises(TrustNotUsable, match=r"root-cert\.pem"):
        source.read()
    path.write_text(roots[0])
    assert source.read() == roots[0]
    path.write_text("half")
    assert source.read() == roots[0]
    path.unlink()
    assert source.read() == roots[0]
    path.write_text(roots[0] + roots[1])
    assert source.read() == roots[0] + roots[1]


def test_inline_and_system_roots(roots: list[str]) -> None:
    assert RootSource(roots[0]).read() == roots[0]
    assert RootSource(SYSTEM).read() == SYSTEM


def test_a_folder_without_roots_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrustNotUsable):
        RootFolder(tmp_path).current()


def test_a_folder_follows_added_and_removed_roots(tmp_path: Path, roots: list[str]) -> None:
    folder = tmp_path / "roots"
    folder.mkdir()
    (folder / "a.pem").write_text(roots[0])
    bundle = RootFolder(folder)
    assert bundle.current() == roots[0]
    (folder / "b.pem").write_text(roots[1])
    assert bundle.current() == roots[0] + roots[1]
    (folder / "a.pem").unlink()
    assert bundle.current() == roots[1]
    (folder / "b.pem").unlink()
    assert bundle.current() == roots[1]
