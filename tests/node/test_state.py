"""What the agent keeps on disk, and what it makes of a file that is not what it wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.attachment import (
    Attachment,
    CaptureOrder,
    NodeState,
    Reference,
    ReferenceKind,
    check_uid,
    check_workload_names,
    from_json,
    to_json,
)
from node.errors import BadRequestError, StateFileError
from node.state_file import StateFile

WEB = Attachment(
    "default/web", "default", "web", "site", Reference(ReferenceKind.PID, "17"), (4, 4026531840), True
)
STATE = NodeState({"default/web": WEB}, {"default/web": CaptureOrder(True, "namespace label")})

texts = st.text(min_size=1, max_size=20)
references = st.one_of(
    st.builds(Reference, st.just(ReferenceKind.PID), st.integers(1, 2**22).map(str)),
    st.builds(Reference, st.just(ReferenceKind.PATH), st.just("/run/netns/x")),
    st.builds(Reference, st.just(ReferenceKind.NAME), st.just("x")),
)
attachments = st.builds(
    Attachment,
    texts,
    texts,
    texts,
    texts,
    references,
    st.tuples(st.integers(0), st.integers(0)),
    st.booleans(),
)
states = st.builds(
    NodeState,
    st.lists(attachments, max_size=5).map(lambda each: {one.uid: one for one in each}),
    st.dictionaries(texts, st.builds(CaptureOrder, st.booleans(), st.text(max_size=20)), max_size=5),
)


@given(states)
def test_state_survives_json(state: NodeState) -> None:
    assert from_json(json.loads(json.dumps(to_json(state)))) == state


def test_state_survives_the_disk(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    with file.locked():
        assert file.load() == NodeState()
        file.save(STATE)
        assert StateFile(tmp_path / "state").load() == STATE
        assert file.path.stat().st_mode & 0o777 == 0o600


def test_two_agents_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(StateFileError, match="another node agent")
    with StateFile(tmp_path).locked(), refused, StateFile(tmp_path).locked():
        pass
    with StateFile(tmp_path).locked():
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 2, "attachments": [], "orders": {}}',
        b'{"version": 1, "attachments": [{}], "orders": {}}',
        b'{"version": 1, "attachments": {}, "orders": []}',
        b'{"version": 1, "attachments": [], "orders": {"a": 1}}',
        json.dumps(to_json(STATE)).replace('"pid", "value": "17"', '"name", "value": "../x"').encode(),
        b"[" * 100_000,
    ],
)
def test_a_useless_file_is_refused_and_can_be_set_aside(tmp_path: Path, content: bytes) -> None:
    file = StateFile(tmp_path)
    file.path.write_bytes(content)
    with pytest.raises(StateFileError):
        file.load()
    aside = file.set_aside()
    assert aside.read_bytes() == content
    assert file.load() == NodeState()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(tmp_path)
    file.save(STATE)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFileError, match="No space left on device"):
        file.save(NodeState())
    assert file.load() == STATE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.json"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("name", ".."),
        ("path", "relative"),
        ("path", "/a\0b"),
        ("pid", "0"),
        ("pid", "-1"),
        ("pid", "1x"),
        ("pid", "\u0661"),
        ("inode", "1"),
        ("path", "/" + "x" * 5000),
    ],
)
def test_bad_references_are_refused(kind: str, value: str) -> None:
    with pytest.raises(BadRequestError):
        Reference.parse(kind, value)


@pytest.mark.parametrize(
    "names",
    [("", "web", "sa"), ("default", "Web", "sa"), ("default", "web", "s a"), ("default", "-web", "sa")],
)
def test_bad_names_are_refused(names: tuple[str, str, str]) -> None:
    with pytest.raises(BadRequestError, match="not a valid name"):
        check_workload_names(*names)


@pytest.mark.parametrize("uid", ["", "a b", "a\n", "x" * 254, "\x7f"])
def test_bad_uids_are_refused(uid: str) -> None:
    with pytest.raises(BadRequestError):
        check_uid(uid)
