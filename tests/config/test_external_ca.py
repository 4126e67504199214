"""The control plane as a process with an external CA: it signs by the files, and follows them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import trio
from cryptography import x509

from ca.client import CaClient, CaClientSettings, channel_factory
from ca.credentials import Credential
from ca.external import ROOTS
from tests.ca.external_files import YEAR, Made, make_ca, write
from tests.ca.harness import DAY
from tests.config.support import entry, namespace
from tests.config.test_control_plane import Process, run, running
from transport.spiffe import SpiffeId

PATIENCE_S = 30.0


def make_now(name: str, parent: Made | None = None) -> Made:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return make_ca(name, parent, begin=now - DAY, end=now + YEAR)


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    web = entry("web", labels="app: web, mycelia.io/node: n1", spec="serviceAccount: web")
    (path / "shop.yaml").write_text("---\n".join([namespace("shop"), web]))
    return path


async def fetch(plane: Process, token: str) -> Credential:
    ca = CaClient(channel_factory(plane.channel, None), lambda: token, CaClientSettings())
    with trio.fail_after(PATIENCE_S):
        return await ca.fetch(SpiffeId("cluster.local", "shop", "web"))


def issuer(credential: Credential) -> str:
    return x509.load_pem_x509_certificate(credential.chain_pem[0].encode()).issuer.rfc4514_string()


async def test_it_signs_by_the_files_and_follows_them(manifests: Path, tmp_path: Path) -> None:
    state, files = tmp_path / "state", tmp_path / "cacerts"
    state.mkdir(mode=0o700)
    root = make_now("root")
    first, second = make_now("first", root), make_now("second", root)
    write(files, first, roots=(root,))
    async with running(manifests, state, "--ca-files", str(files)) as plane:
        token = plane.token("n1")
        assert issuer(await fetch(plane, token)) == "CN=first"
        # A set that does not fit together changes nothing, and is told.
        write(files, second, roots=(make_now("stranger"),))
        assert issuer(await fetch(plane, token)) == "CN=first"
        assert ROOTS in (await plane.json("/status"))["ca"]["problem"]
        # A good one is taken; the port's own certificate follows, and still verifies.
        write(files, second, roots=(root,))
        assert issuer(await fetch(plane, token)) == "CN=second"
        assert issuer(await fetch(plane, token)) == "CN=second"
        assert (await plane.json("/status"))["ca"]["problem"] == ""
        life = (await plane.json("/status"))["ca"]
        assert (life["is_external"], life["stage"]) == (True, "good")
        assert b"mycelia_ca_certificate_remaining_seconds" in (await plane.get("/metrics"))[1]
    assert not (state / "ca").exists()  # no authority of its own was made


def test_bad_files_at_the_start_are_one_message(manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "cacerts").mkdir()
    options = (
        "--manifests",
        manifests,
        "--state-dir",
        tmp_path / "state",
        "--ca-files",
        tmp_path / "cacerts",
    )
    ended = run(*options)
    assert ended.returncode != 0
    assert "ca-key.pem is missing" in ended.stderr
    assert "Traceback" not in ended.stderr
