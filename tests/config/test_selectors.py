"""The two label indexes against looking at everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from config.registry.selectors import EVERYWHERE, LabelIndex, SelectorIndex, is_selected

words = st.sampled_from(["a", "b", "c"])
labels = st.dictionaries(words, words, max_size=3)
places = st.sampled_from(["shop", "bank"])


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["shop", "bank", EVERYWHERE]), labels), max_size=20
    ),
    places,
    labels,
)
def test_matching_selectors_are_found(
    puts: list[tuple[int, str, dict[str, str]]], place: str, wanted: dict[str, str]
) -> None:
    index: SelectorIndex[int] = SelectorIndex()
    truth: dict[int, tuple[str, dict[str, str]]] = {}
    for key, where, selector in puts:
        index.put(key, where, selector)
        truth[key] = (where, selector)
    expected = {
        key
        for key, (where, selector) in truth.items()
        if selector and where in (place, EVERYWHERE) and is_selected(selector, wanted)
    }
    assert set(index.matching(place, wanted)) == expected


@given(st.lists(st.tuples(st.integers(0, 5), places, labels, st.booleans()), max_size=20), places, labels)
def test_selected_things_are_found(
    puts: list[tuple[int, str, dict[str, str], bool]], place: str, selector: dict[str, str]
) -> None:
    index: LabelIndex[int] = LabelIndex()
    truth: dict[int, tuple[str, dict[str, str]]] = {}
    for key, where, held, is_kept in puts:
        if is_kept:
            index.put(key, where, held)
            truth[key] = (where, held)
        else:
            index.remove(key)
            truth.pop(key, None)
    for where in (place, EVERYWHERE):
        expected = {
            key
            for key, (own, held) in truth.items()
            if selector and where in (own, EVERYWHERE) and is_selected(selector, held)
        }
        assert set(index.selected(where, selector)) == expected
