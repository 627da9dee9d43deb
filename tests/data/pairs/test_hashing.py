"""Keys of texts."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from data.pairs.hashing import SeenHashes, combined, fraction, text_hashes

KEYS = st.integers(0, 2**64 - 1)


@given(KEYS, KEYS)
def test_two_keys_are_one_by_the_finaliser_of_splitmix64_in_whole_numbers(first: int, second: int) -> None:
    """The keys choose samples, negatives and dev rows: other ones would choose others."""
    mixed = (first * 0x9E3779B97F4A7C15 + second) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    one, other = (np.array([key], np.uint64) for key in (first, second))
    assert combined(one, other).tolist() == [mixed ^ mixed >> 31]
    assert 0 <= fraction(one)[0] < 1 and abs(fraction(one)[0] - first / 2**64) <= 2**-53


def test_the_seed_changes_a_text_s_key_and_its_place_in_a_column_does_not() -> None:
    texts = pl.Series(["мир", "ёлка", None, "мир"])
    expected = [xxh3_64_intdigest((text or "").encode(), seed=7) for text in texts]
    assert text_hashes(texts, seed=7).tolist() == expected
    assert text_hashes(texts.slice(2), seed=7).tolist() == expected[2:]


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12))
def test_a_key_is_new_only_once_whatever_the_batches(batches: list[list[int]]) -> None:
    seen, known = SeenHashes(), set[int]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in known)
            known.add(key)
        assert seen.add_new(np.array(batch, np.uint64)).tolist() == expected
