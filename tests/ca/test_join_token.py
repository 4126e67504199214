"""Join tokens: what they carry, what they allow, and every way to be refused."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from ca.authority import Authority
from ca.errors import InvalidNodeName, JoinTokenMalformed, NodeTokenRejected, StateNotReadable
from ca.join_token import MAX_USES, PREFIX, Admission, JoinToken, UseLedger, admit, mint_credential
from ca.node_token import REVOKED_FILE, NodeTokens

from .harness import DAY, HOUR, NOW


@pytest.fixture(name="tokens")
def _tokens(tmp_path: Path) -> NodeTokens:
    return NodeTokens.load_or_create(tmp_path / "tokens")


@pytest.fixture(name="roots", scope="module")
def _roots(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ca")
    return Authority.load_or_create(folder / "state", trust_domain="cluster.local", now=NOW).roots_pem


def test_a_token_carries_addresses_roots_and_credential(roots: str) -> None:
    token = JoinToken((("10.0.0.1", 15012), ("fd00::1", 15012)), roots, "a.b.c")
    text = token.encode()
    assert text.startswith(PREFIX)
    assert JoinToken.decode(text) == token


def test_line_breaks_of_a_terminal_do_not_matter(roots: str) -> None:
    text = JoinToken((("cp.example", 15012),), roots, "a.b.c").encode()
    broken = "\n".join(text[start : start + 60] for start in range(0, len(text), 60))
    assert JoinToken.decode(f"  {broken}\n") == JoinToken.decode(text)


@pytest.mark.parametrize(
    "change",
    [lambda text: text[:-40], lambda text: text[9:], lambda _: "", lambda text: text[:20] + "!" + text[20:]],
)
def test_a_damaged_token_is_named_as_such(roots: str, change: object) -> None:
    text = JoinToken((("cp.example", 15012),), roots, "a.b.c").encode()
    assert callable(change)
    with pytest.raises(JoinTokenMalformed, match="mycelia token create"):
        JoinToken.decode(change(text))


def test_a_credential_names_its_node_and_its_uses(tokens: NodeTokens) -> None:
    admission = admit(tokens, mint_credential(tokens, "node-a", 3, HOUR, NOW), "node-a", NOW)
    assert (admission.node, admission.uses) == ("node-a", 3)
    assert admit(tokens, mint_credential(tokens, "", 1, HOUR, NOW), "node-a", NOW).node == ""


def test_a_credential_is_no_node_token_and_the_other_way_round(tokens: NodeTokens) -> None:
    with pytest.raises(NodeTokenRejected, match="audience"):
        tokens.verify(mint_credential(tokens, "node-a", 1, HOUR, NOW), NOW)
    with pytest.raises(NodeTokenRejected, match="audience"):
        admit(tokens, tokens.mint("node-a", DAY, NOW), "node-a", NOW)


def test_a_credential_ends(tokens: NodeTokens) -> None:
    credential = mint_credential(tokens, "node-a", 1, HOUR, NOW)
    with pytest.raises(NodeTokenRejected, match="expired"):
        admit(tokens, credential, "node-a", NOW + HOUR + dt.timedelta(minutes=2))


@pytest.mark.parametrize(("uses", "lifetime"), [(0, HOUR), (MAX_USES + 1, HOUR), (1, 8 * DAY), (1, -HOUR)])
def test_impossible_numbers_are_refused(tokens: NodeTokens, uses: int, lifetime: dt.timedelta) -> None:
    with pytest.raises(JoinTokenMalformed):
        mint_credential(tokens, "node-a", uses, lifetime, NOW)


def test_a_name_that_is_none_is_refused(tokens: NodeTokens) -> None:
    with pytest.raises(InvalidNodeName):
        mint_credential(tokens, "../x", 1, HOUR, NOW)


def test_uses_are_counted_and_survive_a_restart(tmp_path: Path) -> None:
    admission = Admission("t1", "", 2, int((NOW + HOUR).timestamp()))
    for _ in range(2):
        UseLedger(tmp_path / "ledger.json").take(admission, NOW)
    with pytest.raises(NodeTokenRejected, match="used 2 times"):
        UseLedger(tmp_path / "ledger.json").take(admission, NOW)
    UseLedger(tmp_path / "ledger.json").take(Admission("t2", "", 1, admission.expires_s), NOW)


def test_dead_tokens_leave_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    UseLedger(path).take(Admission("old", "", 1, int(NOW.timestamp())), NOW)
    UseLedger(path).take(Admission("new", "", 1, int((NOW + DAY).timestamp())), NOW + 2 * HOUR)
    assert list(json.loads(path.read_text())["used"]) == ["new"]


def test_a_damaged_ledger_admits_nobody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.touch(mode=0o600)
    path.write_text("[]")
    with pytest.raises(StateNotReadable):
        UseLedger(path).take(Admission("t1", "", 1, int((NOW + HOUR).timestamp())), NOW)


def test_revoking_a_node_refuses_its_tokens_and_not_later_ones(tokens: NodeTokens) -> None:
    old, other = tokens.mint("node-a", DAY, NOW), tokens.mint("node-b", DAY, NOW)
    tokens.revoked.add("node-a", NOW + HOUR)
    with pytest.raises(NodeTokenRejected, match="revoked"):
        tokens.verify(old, NOW + HOUR)
    assert tokens.verify(other, NOW + HOUR) == "node-b"
    fresh = tokens.mint("node-a", DAY, NOW + 2 * HOUR)
    assert tokens.verify(fresh, NOW + 2 * HOUR) == "node-a"


def test_a_revocation_by_another_process_is_seen(tmp_path: Path) -> None:
    server = NodeTokens.load_or_create(tmp_path / "tokens")
    token = server.mint("node-a", DAY, NOW)
    assert server.verify(token, NOW) == "node-a"
    NodeTokens.load_or_create(tmp_path / "tokens").revoked.add("node-a", NOW)
    with pytest.raises(NodeTokenRejected, match="revoked"):
        server.verify(token, NOW)


def test_an_unreadable_list_of_revocations_refuses_everybody(tmp_path: Path) -> None:
    tokens = NodeTokens.load_or_create(tmp_path / "tokens")
    token = tokens.mint("node-a", DAY, NOW)
    path = tmp_path / "tokens" / REVOKED_FILE
    path.touch(mode=0o600)
    path.write_text("not JSON")
    with pytest.raises(NodeTokenRejected, match="cannot be read"):
        tokens.verify(token, NOW)
