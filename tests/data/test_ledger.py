"""The ledger's text against lines made by hand."""

from typing import Any

import pytest

from configs.schema.data import CardCount, SourceConfig
from data.ledger import SetCounts, entry, expected, markdown, status, table, totals


def line(title: str, card: CardCount | None = None, **counts: Any) -> dict[str, Any]:
    source = SourceConfig(title=title, side="symmetric", hub="some/set", card=card or CardCount())
    return entry(title, source, vars(SetCounts(**counts)) | {"revision": "abc"})


@pytest.mark.parametrize(
    ("card", "statuses"),
    [
        (CardCount(1000), {999: "differs", 1000: "equal", 1001: "differs"}),
        (CardCount(1000, rounded_to=100), {949: "differs", 950: "equal", 1050: "equal", 1051: "differs"}),
        (CardCount(), {0: "not on the card"}),
    ],
)
def test_a_rounded_figure_is_met_within_half_a_step(card: CardCount, statuses: dict[int, str]) -> None:
    source = SourceConfig(card=card)
    assert {built: status(source, built) for built in statuses} == statuses
    assert expected(source) == card.pairs and expected(SourceConfig(card=CardCount(1000, expected=0))) == 0


def test_totals_are_of_training_sets_and_tell_apart_the_negatives_that_the_card_counts() -> None:
    counted, left_out = line("A", CardCount(30, 0), built=20, negatives=7), line("B", built=9, negatives=4)
    sums = totals([counted, left_out, line("H", built=100, negatives=100) | {"side": "held_out"}])
    assert (sums["card"], sums["built"], sums["negatives"]) == (30, 29, 11)
    assert (sums["negatives_the_card_counts"], sums["negatives_it_leaves_out"]) == (7, 4)


def test_a_page_shows_for_each_set_what_differs_and_in_which_sets_evaluation_texts_were_found() -> None:
    same = line("Same", CardCount(1200), built=1200, dev=3, dev_candidates=3, dropped={"b": 1, "a": 2})
    other = line("Other", CardCount(50), built=1049, dev=3, dev_candidates=5, reported={"near evaluation: sts": 2})
    samples = [{"anchor": "a" * 200, "positive": "b\n" * 100 + "b", "negative": "c`` c"}]
    mined = {"negatives": 1, "model": "m", "revision": "r", "false_negatives": 0.25, "pairs_without": 0}
    changed: Any = {"cleaned": {"tags": 1}, "examples": [("tags", "``", "`")], "reported": {"evaluation: sts": 1}}
    own = line("Own", mined=mined | {"samples": samples}, **changed)
    lines, evaluations = [same, other, own], {"checked": {"sts": 1000, "rte": 2}, "not_checked": {"qa": "no file"}}
    page = markdown(lines, totals(lines), evaluations)
    first, second, third = (
        page.partition(f"## {title}\n")[2].partition("\n## ")[0] for title in ("Same", "Other", "Own")
    )
    assert "Dropped: a 2, b 1." in first and "Built" not in first and "held back" not in first
    assert "Built 1,049 against the card's 50: the available files are not the full set." in second
    assert "Of 5 rows held back, 3 are dev rows" in second
    assert f"- {'a' * 200}\n    - positive: {'b ' * 99}b…\n    - mined: c`` c\n" in third
    assert "'``' → `` ` `` (tags)" in third and "25.0% of the candidates" in third
    assert "- sts: 1,000 texts; found in training: Other 2, Own 1\n- rte: 2 texts; found in training: none" in page
    assert page.endswith("- qa: **not checked**: no file\n")
    assert "checked against no benchmark." in markdown([own], totals([own]), {"checked": {}, "not_checked": {}})
    assert [row[-1] for row in table([same, own])[1]] == ["equal", "not on the card"] and table([own])[1][0][-1] is None
