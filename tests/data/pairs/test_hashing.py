"""Keys of texts that were seen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.pairs.hashing import SeenHashes


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=12))
def test_a_key_is_new_once_whatever_the_batches(batches: list[list[int]]) -> None:
    seen, known = SeenHashes(), set[int]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in known)
            known.add(key)
        assert seen.add_new(np.array(batch, np.uint64)).tolist() == expected
