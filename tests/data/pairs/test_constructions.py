"""Each construction against its documented result."""

from operator import eq
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.schema.data import SourceConfig
from data.pairs.constructions import CONSTRUCTIONS, first_choices, turns, with_chosen_negatives

LABELS = ["entailment", "neutral", "contradiction"]


def made(construction: str, rows: dict[str, list], seed: int = 42, **fields: object) -> list[tuple]:
    source = SourceConfig(title="x", side="symmetric", construction=construction, **fields)  # type: ignore[arg-type]
    frame = pl.DataFrame(rows).with_columns(pl.int_range(pl.len()).alias("row"))
    taken = first_choices(CONSTRUCTIONS[construction](frame, source), source)
    return with_chosen_negatives(taken, source, seed).select("anchor", "positive", "negatives", "score").rows()


def test_articles_pair_their_title_with_text_and_with_summary() -> None:
    rows = {"title": ["T1", "T2"], "text": ["x1", "x2"], "summary": ["s1", "s2"]}
    assert [row[:2] for row in made("title_text_summary", rows)] == [
        ("T1", "x1"),
        ("T1", "s1"),
        ("T2", "x2"),
        ("T2", "s2"),
    ]


def test_parallel_lists_pair_by_position() -> None:
    rows = {"query": ["q"], "pos": [["p1", "p2"]], "neg": [["n1", "n2"]]}
    assert made("query_pos_neg", rows, list_length=2) == [("q", "p1", ["n1"], None), ("q", "p2", ["n2"], None)]
    assert made("query_pos_neg", rows, list_length=2, positives="first") == [("q", "p1", ["n1"], None)]
    assert made("query_pos_neg", rows) == [("q", "p1", ["n1", "n2"], None), ("q", "p2", ["n1", "n2"], None)]


def test_parallel_lists_may_have_no_negatives() -> None:
    rows = {"query": ["q", "r"], "pos": [["p1", "p2"]] * 2, "neg": [[], ["", "n2"]]}
    wanted = [("q", "p1", [], None), ("q", "p2", [], None), ("r", "p1", [""], None), ("r", "p2", ["n2"], None)]
    assert made("query_pos_neg", rows, list_length=2) == wanted


def test_scores_are_brought_to_the_range_from_0_to_1() -> None:
    rows = {"anchor": list("abc"), "positive": list("def"), "score": [-1.0, 0.0, 1.0]}
    found = made("scored_pairs", rows, score_range=[-1.0, 1.0])
    assert found == [("a", "d", [], 0.0), ("b", "e", [], 0.5), ("c", "f", [], 1.0)]
    alone = made("scored_pairs", rows, score_range=[-1.0, 1.0], scored_rows=False)
    assert alone == [("c", "f", [], None)]


def test_triplets_keep_choose_or_spread_their_negatives() -> None:
    rows = {"anchor": ["a", "b"], "positive": ["p", "q"], "negative": [["n1", "n2", "n3"], ["m1"]]}
    assert made("triplets", rows) == [("a", "p", ["n1", "n2", "n3"], None), ("b", "q", ["m1"], None)]
    assert [row[2] for row in made("triplets", rows, negatives_as_rows=True)] == [["n1"], ["n2"], ["n3"], ["m1"]]
    bare = rows | {"negative": [["n1", "n2"], []]}
    assert [row[2] for row in made("triplets", bare, negatives_as_rows=True)] == [["n1"], ["n2"], []]  # no pair is lost
    assert [row[2] for row in made("triplets", rows, negatives="none")] == [[], []]
    chosen = made("triplets", rows, max_negatives=2)
    assert len(chosen[0][2]) == 2 and set(chosen[0][2]) <= {"n1", "n2", "n3"} and chosen[1][2] == ["m1"]


def test_chosen_negatives_are_spread_evenly_and_do_not_depend_on_the_batch() -> None:
    count = 3000
    rows = {
        "anchor": [f"a{n}" for n in range(count)],
        "positive": ["p"] * count,
        "negative": [[str(k) for k in range(10)]] * count,
    }
    whole = made("triplets", rows, max_negatives=1)
    halves = [
        made("triplets", {name: column[part] for name, column in rows.items()}, max_negatives=1)
        for part in (slice(0, 1000), slice(1000, None))
    ]
    assert whole == halves[0] + halves[1]
    assert 0.05 < sum(map(eq, whole, made("triplets", rows, 43, max_negatives=1))) / count < 0.15  # by chance a tenth
    counts = [sum(row[2] == [str(k)] for row in whole) for k in range(10)]
    assert min(counts) > 240 and max(counts) < 360  # 300 expected, standard deviation 16


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.sampled_from(LABELS)), max_size=40))
@example([*((0, number, LABELS[0]) for number in range(5)), (0, 9, LABELS[2]), (0, 8, LABELS[2])])  # round and round
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("need", [False, True])
def test_nli_agrees_with_a_loop_over_premises(one: bool, need: bool, rows: list[tuple[int, int, str]]) -> None:
    frame = {
        "group": [f"g{group}" for group, _, _ in rows],
        "premise": [f"g{group}" for group, _, _ in rows],
        "hypothesis": [f"h{hypothesis}" for _, hypothesis, _ in rows],
        "label": [label for _, _, label in rows],
    }
    schema_safe = {name: pl.Series(column, dtype=pl.String) for name, column in frame.items()}
    fields = {"pairs_per_group": "one" if one else "all", "need_negative": need, "labels": {"a": "entailment"}}
    expected = []
    for position, (group, hypothesis, label) in enumerate(rows):
        if label != "entailment":
            continue
        earlier = sum(g == group and other == "entailment" for g, _, other in rows[:position])
        negatives = [f"h{h}" for g, h, other in rows if g == group and other == "contradiction"]
        if (one and earlier) or (need and not negatives):
            continue
        expected.append(
            (f"g{group}", f"h{hypothesis}", [negatives[earlier % len(negatives)]] if negatives else [], None)
        )
    assert made("nli", schema_safe, **fields) == expected


def test_nli_joins_no_lists_that_grow_with_the_square_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group with as many entailments as negatives, each with a list of all: 20,000 took 24 GB."""
    sizes, join, many = list[int](), pl.DataFrame.join, 1000

    def measured(*given: Any, **options: Any) -> pl.DataFrame:
        result = join(*given, **options)
        sizes.append(result.to_arrow().nbytes)
        return result

    monkeypatch.setattr(pl.DataFrame, "join", measured)
    rows = {"group": ["g"] * 2 * many, "premise": ["p"] * 2 * many, "label": [LABELS[0], LABELS[2]] * many}
    found = made("nli", rows | {"hypothesis": [f"h{number}" for number in range(2 * many)]})
    assert found == [("p", f"h{number}", [f"h{number + 1}"], None) for number in range(0, 2 * many, 2)]
    assert max(sizes) < 1000 * many  # bytes


def test_nli_keeps_other_labels_with_their_score() -> None:
    rows = {"group": ["a"] * 3, "premise": ["A"] * 3, "hypothesis": ["1", "2", "3"], "label": LABELS}
    scores = {"neutral": 0.5, "contradiction": 0.0}
    found = made("nli", rows, labels={"x": "neutral"}, scores=scores, negative_label=None)
    assert found == [("A", "1", [], 1.0), ("A", "2", [], 0.5), ("A", "3", [], 0.0)]


def test_every_construction_with_negatives_can_leave_them_out() -> None:
    lists = {"query": ["q"], "pos": [["p1", "p2"]], "neg": [["n1", "n2"]]}
    labelled = {"group": ["g", "g"], "premise": ["p", "p"], "hypothesis": ["h", "i"], "label": [LABELS[0], LABELS[2]]}
    for length in (2, None):
        kept = made("query_pos_neg", lists, list_length=length, negatives="none")
        assert kept == [("q", "p1", [], None), ("q", "p2", [], None)]
    assert made("nli", labelled, negatives="none") == [("p", "h", [], None)]


@pytest.mark.parametrize("order", [["10", "9"], ["b", "a"]])
def test_nli_orders_numbers_as_numbers_and_words_as_words(order: list[str]) -> None:
    rows = {
        "group": ["a"] * 2,
        "premise": ["A"] * 2,
        "hypothesis": ["second", "first"],
        "label": ["entailment"] * 2,
        "order": order,
    }
    assert [row[1] for row in made("nli", rows, labels={"x": "neutral"}, pairs_per_group="one")] == ["first"]


def test_paraphrase_groups_return_their_first_two_different_texts() -> None:
    rows = {"group": list("aaabbc"), "text": ["x", "x", "y", "z", "z", "w"], "order": ["3", "2", "1", "1", "2", "1"]}
    assert [row[:2] for row in made("paraphrase_groups", rows)] == [("y", "x")]


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("<|user|>Как дела?</s>\n<|assistant|>Хорошо.</s>", ("Как дела?", "Хорошо.")),
        ("<|user|> Один\nдва <|assistant|> Три </s><|user|>Ещё?", ("Один\nдва", "Три")),
        ("без разметки", ("", "")),
    ],
)
def test_chat_markup_is_split_into_its_first_turn(text: str, turn: tuple[str, str]) -> None:
    assert turns(pl.DataFrame({"text": [text]})).row(0) == turn
