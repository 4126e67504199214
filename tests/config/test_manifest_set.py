"""Which objects are in force when files are good, bad, doubled and gone. No disk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from config.objects import Ref
from config.source.manifest_set import Changes, ManifestSet, read_file, unreadable_file


def document(name: str, label: str = "") -> str:
    labels = f", labels: {{v: '{label}'}}" if label else ""
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n"


BROKEN = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: 5}\n"
OBSCURE = "kind: [\n"


class Files:
    def __init__(self) -> None:
        self.set = ManifestSet()

    def put(self, name: str, *documents: str) -> Changes:
        text = "---\n".join(documents)
        return self.set.install([read_file(name, text, self.set.files.get(name))])

    def fail(self, name: str) -> Changes:
        return self.set.install([unreadable_file(name, "cannot be opened", self.set.files.get(name))])

    def remove(self, name: str) -> Changes:
        return self.set.install([], [name])

    def in_force(self) -> dict[str, str]:
        return {ref.name: each.value.meta.labels.get("v", "") for ref, each in self.set.in_force.items()}

    def problems(self) -> list[str]:
        return [str(problem) for problem in self.set.problems()]


def names(changes: Changes) -> tuple[list[str], list[str]]:
    return sorted(ref.name for ref in changes.upserted), sorted(ref.name for ref in changes.removed)


def test_documents_come_change_and_go() -> None:
    files = Files()
    assert names(files.put("a.yaml", document("x"), document("y"))) == (["x", "y"], [])
    assert names(files.put("a.yaml", document("x"), document("y"))) == ([], [])
    assert names(files.put("a.yaml", document("x", "2"), document("y"))) == (["x"], [])
    assert names(files.put("a.yaml", document("y"))) == ([], ["x"])
    assert names(files.remove("a.yaml")) == ([], ["y"])
    assert files.in_force() == {}


def test_a_broken_document_keeps_its_last_good_object_and_no_other() -> None:
    files = Files()
    files.put("a.yaml", document("x", "1"), document("y"), document("z"))
    assert names(files.put("a.yaml", BROKEN % "x", document("y", "2"))) == (["y"], ["z"])
    assert files.in_force() == {"x": "1", "y": "2"}
    assert files.set.in_force[Ref("Namespace", "", "x")].is_kept
    assert len(files.problems()) == 1
    assert names(files.put("a.yaml", document("x", "3"), document("y", "2"))) == (["x"], [])
    assert files.problems() == []


def test_a_document_that_cannot_be_named_keeps_all_that_is_not_defined_otherwise() -> None:
    files = Files()
    files.put("a.yaml", document("x", "1"), document("y"), document("z"))
    assert names(files.put("a.yaml", OBSCURE, document("y", "2"))) == (["y"], [])
    assert files.in_force() == {"x": "1", "y": "2", "z": ""}
    assert names(files.put("a.yaml", OBSCURE)) == ([], [])
    assert names(files.put("a.yaml", document("x", "1"))) == ([], ["y", "z"])


def test_a_file_that_cannot_be_read_keeps_all_it_had() -> None:
    files = Files()
    files.put("a.yaml", document("x"))
    assert names(files.fail("a.yaml")) == ([], [])
    assert files.in_force() == {"x": ""}
    assert files.problems() == ["error: a.yaml: cannot be opened"]


def test_a_new_bad_file_adds_nothing() -> None:
    files = Files()
    assert not files.put("a.yaml", BROKEN % "x")
    assert files.in_force() == {}


def test_the_first_file_by_name_counts_and_the_other_is_told() -> None:
    files = Files()
    files.put("b.yaml", document("x", "b"))
    assert names(files.put("a.yaml", document("x", "a"))) == (["x"], [])
    assert files.in_force() == {"x": "a"}
    (problem,) = files.problems()
    place = "error: b.yaml, document 1, line 1, Namespace x: "
    assert problem == place + "is also in a.yaml, which counts (the first file by name)"
    assert names(files.remove("a.yaml")) == (["x"], [])
    assert files.in_force() == {"x": "b"}
    assert files.problems() == []


def test_a_good_definition_anywhere_beats_a_kept_one() -> None:
    files = Files()
    files.put("a.yaml", document("x", "a"))
    files.put("a.yaml", BROKEN % "x")
    files.put("b.yaml", document("x", "b"))
    assert files.in_force() == {"x": "b"}
    files.put("a.yaml", document("x", "new"))
    assert files.in_force() == {"x": "new"}


def test_an_object_may_move_between_files() -> None:
    files = Files()
    files.put("a.yaml", document("x"))
    readings = [read_file("b.yaml", document("x"), None)]
    assert not files.set.install(readings, ["a.yaml"])
    assert files.set.in_force[Ref("Namespace", "", "x")].file == "b.yaml"


def test_unchanged_documents_are_not_read_again() -> None:
    first = read_file("a.yaml", document("x") + "---\n" + document("y"), None)
    second = read_file("a.yaml", document("x") + "---\n" + document("y", "2"), first)
    ref = Ref("Namespace", "", "x")
    assert second.good[ref] is first.good[ref]


def test_the_last_good_text_gives_the_same_objects() -> None:
    files = Files()
    files.put("a.yaml", document("x", "1"), document("y"))
    files.put("a.yaml", BROKEN % "x", document("y", "2"))
    saved = read_file("a.yaml", files.set.files["a.yaml"].last_good_text(), None)
    assert {ref.name: each.value.meta.labels.get("v", "") for ref, each in saved.good.items()} == {
        "x": "1",
        "y": "2",
    }


labels = st.sampled_from(["", "1", "2"])
docs = st.one_of(
    st.builds(document, st.sampled_from("xyz"), labels),
    st.sampled_from("xyz").map(lambda name: BROKEN % name),
    st.just(OBSCURE),
)
versions = st.one_of(st.none(), st.just("unreadable"), st.lists(docs, max_size=4))


@given(st.lists(st.tuples(st.sampled_from(["a.yaml", "b.yaml"]), versions), max_size=12))
def test_changes_add_up_to_what_is_in_force(sequence: list[tuple[str, str | list[str] | None]]) -> None:
    files = Files()
    held: dict[Ref, object] = {}
    for name, version in sequence:
        if version is None:
            changes = files.remove(name)
        elif isinstance(version, str):
            changes = files.fail(name)
        else:
            changes = files.put(name, *version)
        held |= changes.upserted
        for ref in changes.removed:
            del held[ref]
        assert held == {ref: each.value for ref, each in files.set.in_force.items()}
        assert not (changes.removed & changes.upserted.keys())
