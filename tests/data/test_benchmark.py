"""The benchmark's two sides build the same pairs, and the made-up mirror has the arithmetic of the card."""

from pathlib import Path

import pytest

from benchmarks.data import SETS_ALONE, card_differences
from benchmarks.data_with_datasets import prepare_all
from benchmarks.synthetic_mirror import Mirror
from tests.support.prepared_data import composed, run


@pytest.mark.slow
def test_both_sides_build_the_same_pairs(tmp_path: Path) -> None:
    Mirror(tmp_path / "mirror", 0.002).write()
    ours = run(tmp_path / "ours", "data=card", f"mirror={tmp_path}/mirror", *SETS_ALONE)
    theirs = prepare_all(tmp_path / "mirror", tmp_path / "theirs")
    assert {name: line["built"] for name, line in ours.ledger.items()} == theirs["built"]


def test_counts_that_the_card_does_not_explain_are_named() -> None:
    sources = composed("data=card").data.sources
    built = {name: source.card.expected or source.card.pairs or 0 for name, source in sources.items()}
    assert card_differences(sources, built) == {}
    assert card_differences(sources, built | {"tapaco": 91_239}) == {"tapaco": (91_239, 91_240)}
