"""The suffix array against sorting the suffixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_components.indexes.suffix_array import suffix_array

texts = st.one_of(
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.integers(0, 70_000), max_size=30),
    # Periodic texts make the recursion deep.
    st.builds(
        lambda part, times, tail: part * times + tail,
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
        st.integers(1, 20),
        st.lists(st.integers(0, 2), max_size=3),
    ),
)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_equals_sorting_the_suffixes(text):
    wanted = sorted(range(len(text)), key=lambda i: text[i:])
    assert suffix_array(np.array(text, dtype=np.int64)).tolist() == wanted


def test_long_text_is_a_sorted_permutation():
    tokens = np.random.default_rng(0).zipf(1.4, 50_000).clip(0, 500)
    rows = suffix_array(tokens)
    assert np.array_equal(np.sort(rows), np.arange(len(tokens)))
    padded = np.concatenate([tokens, np.full(40, -1)])
    for before, after in zip(rows[:-1:97], rows[1::97], strict=True):
        assert padded[before : before + 40].tolist() <= padded[after : after + 40].tolist()


def test_negative_tokens_are_refused():
    with pytest.raises(ValueError, match="Tokens must not be negative, got -1"):
        suffix_array(np.array([1, -1]))
