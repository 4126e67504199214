"""YAML as Kubernetes reads it, and what hostile YAML gets."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.kinds.catalogue import read_document
from config.kinds.yaml_documents import (
    MAX_DEPTH,
    MAX_REPEATED_VALUES,
    YamlRefused,
    build,
    line_of,
    split,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("NULL", None),
        ("yes", True),
        ("Off", False),
        ("y", "y"),
        ("'yes'", "yes"),
        ("12", 12),
        ("+1_000", 1000),
        ("-0x1F", -31),
        ("012", 10),
        ("0o17", 15),
        ("0b11", 3),
        ("08", 8.0),
        ("1.50", 1.5),
        (".5e2", 50.0),
        ("1e3", 1000.0),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        (".inf", ".inf"),
        ("_1", "_1"),
        ("=", "="),
        ("!!str 5", "5"),
        ("!!int 5", 5),
        ("|\n a\n b\n", "a\nb\n"),
        ("{8080: a, true: b, 1.5: c}", {"8080": "a", "true": "b", "1.5": "c"}),
        ("{a: &x {b: 1}, c: *x}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("{a: &x {b: 1, d: 2}, c: {<<: *x, b: 3}}", {"a": {"b": 1, "d": 2}, "c": {"b": 3, "d": 2}}),
        ("{<<: [{a: 1}, {a: 2, b: 3}]}", {"a": 1, "b": 3}),
    ],
)
def test_values_are_what_kubernetes_reads(text: str, value: object) -> None:
    assert build(text) == value


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\nb: {c: 1,\n c: 2}", 3, 'key "c" is written twice'),
        ("a: !!python/name:os.system", 1, "tag !!python/name:os.system is not allowed"),
        ("a: !custom x", 1, "tag !custom is not allowed"),
        ("a: !!binary aGk=", 1, "tag !!binary is not allowed"),
        ("a: !!set {b}", 1, "tag !!set is not allowed"),
        ("a: !!int x", 1, "is not of the type that its tag !!int says"),
        ("[" * 100_000, 1, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 100_000, 1, f"nested more than {MAX_DEPTH} deep"),
        ("&a [*a]", 1, "alias *a has no anchor"),
        ("? [a]\n: b", 1, "a key must be plain text"),
        ("~: b", 1, "a key must be text"),
        ("<<: 5", 1, "the merge key << takes a mapping"),
        ("a: 0b_", 1, "is not a number"),
        ("a: " + "9" * 50, 1, "a number of 50 digits"),
        ("a: 1e999", 1, "too large a number"),
        ("a:\n\tb", 2, "not valid YAML: found character that cannot start any token"),
        ("a: 'x", 1, "not valid YAML: found unexpected end of stream"),
        ("a: \x01", 1, "not valid YAML: control characters are not allowed"),
        ("{a: b}\n{c: d}", 2, "not valid YAML: did not find expected <document start>"),
    ],
)
def test_hostile_and_ambiguous_yaml_is_refused_with_its_line(text: str, line: int, part: str) -> None:
    with pytest.raises(YamlRefused) as caught:
        build(text)
    assert part in caught.value.text
    assert caught.value.line == line


def test_an_alias_bomb_is_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(f'*a{n - 1}' for _ in range(10))}]" for n in range(1, 10)]
    with pytest.raises(YamlRefused, match=f"aliases repeat more than {MAX_REPEATED_VALUES}"):
        build("\n".join(lines))


def test_documents_are_cut_at_markers_and_nowhere_else() -> None:
    text = "# remark\n---\na: 1\n---  # remark\nb: '---'\n---\n---\nc: |\n  ---\n  text\n--- {d: 4}\n...\n"
    found = [(each.index, each.first_line, build(each.text)) for each in split(text)]
    assert found == [
        (1, 2, {"a": 1}),
        (2, 4, {"b": "---"}),
        (4, 7, {"c": "---\ntext\n"}),
        (5, 11, {"d": 4}),
    ]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a remark", "---", "---\n---\n", "\ufeff", "%YAML 1.2\n---\n"]
)
def test_files_without_a_document_hold_nothing(text: str) -> None:
    assert list(split(text)) == []


def test_lines_of_fields_are_found() -> None:
    text = "a:\n  b:\n  - c\n  - d: 1\n    e: 2\n"
    assert line_of(text, ("a", "b", 1, "e")) == 5
    assert line_of(text, ("a", "b", 1, "missing")) == 4
    assert line_of(text, ()) == 1


def json_values(words: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | words,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
        max_leaves=20,
    )


words = st.text(st.characters(categories=["L", "N", "P", "Zs"]))
# PyYAML writes `08` and `1e3` without quotes: text to YAML 1.1, numbers to Kubernetes and us.
not_like_numbers = words.filter(lambda word: word[:1] not in set("+-.0123456789"))


@given(json_values(words))
def test_json_reads_as_itself(value: object) -> None:
    assert build(json.dumps(value, ensure_ascii=False)) == value


@given(json_values(not_like_numbers))
def test_what_pyyaml_writes_reads_as_itself(value: object) -> None:
    assert build(yaml.safe_dump(value)) == value


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    for document in split(text):
        read_document(document.text)
