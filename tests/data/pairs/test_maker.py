"""Pairs from rows: a construction chooses among what cleaning and decontamination leave."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.data import CleaningConfig, SourceConfig
from data.pairs.decontamination import Decontamination, TextIndex
from data.pairs.maker import PairBatch, PairMaker

ENGLISH = "This sentence is written in another script."
FORBIDDEN = "Это предложение стоит в проверочном наборе."
NLI = {"construction": "nli", "labels": {"x": "entailment"}, "pairs_per_group": "one", "need_negative": True}


def made(rows: dict[str, list], decontaminated: bool = False, **fields: Any) -> PairBatch:
    """The clean pairs of rows of one frame."""
    index = TextIndex({"held out: x": pl.Series([FORBIDDEN])})
    compared = Decontamination(forbidden=index) if decontaminated else Decontamination()
    maker = PairMaker(SourceConfig("x", "symmetric", **fields), CleaningConfig(), 42, compared)
    return maker.from_rows(pl.DataFrame(rows).with_columns(row=pl.int_range(pl.len())))


def nli(hypotheses: list[tuple[str, str]], decontaminated: bool = False, **fields: Any) -> PairBatch:
    """The pairs of one premise."""
    rows = {
        "group": ["g"] * len(hypotheses),
        "premise": ["Девочка рисует мелом."] * len(hypotheses),
        "hypothesis": [hypothesis for hypothesis, _ in hypotheses],
        "label": [label for _, label in hypotheses],
    }
    return made(rows, decontaminated, **(NLI | fields))


@pytest.mark.parametrize("bad", ["а", ENGLISH, "девочка рисует мелом!", FORBIDDEN])
def test_a_premise_takes_its_first_good_entailment(bad: str) -> None:
    rows = [(bad, "entailment"), ("Ребёнок рисует.", "entailment"), ("Она рисует.", "entailment")]
    batch = nli([*rows, ("Ребёнок спит.", "contradiction")], decontaminated=True)
    assert batch.pairs.rows() == [("Девочка рисует мелом.", "Ребёнок рисует.", ["Ребёнок спит."], None)]
    assert batch.built == 1 and not batch.dropped


def test_a_premise_takes_its_first_good_contradiction() -> None:
    rows = [("Ребёнок рисует.", "entailment"), ("ребёнок рисует", "contradiction"), ("н", "contradiction")]
    batch = nli([*rows, ("Ребёнок спит.", "contradiction")])
    assert batch.pairs["negatives"].to_list() == [["Ребёнок спит."]] and not batch.dropped


def test_need_negative_lets_no_pair_without_one_through() -> None:
    rows = [("Ребёнок рисует.", "entailment"), ("ребёнок рисует", "contradiction")]
    batch = nli(rows)
    assert batch.built == 1 and len(batch.pairs) == 0
    assert batch.dropped == {"no negative that can be used": 1}
    without = nli(rows, need_negative=False)
    assert without.pairs["negatives"].to_list() == [[]]
    assert without.dropped == {"negatives, empty or equal to the positive": 1}
    other = nli([*rows, ("Девочка рисует мелом на асфальте.", "entailment")])
    assert other.pairs["positive"].to_list() == ["Девочка рисует мелом на асфальте."] and not other.dropped


def test_a_premise_without_a_good_entailment_counts_once_by_its_first_reason() -> None:
    batch = nli([(ENGLISH, "entailment"), ("а", "entailment"), ("Ребёнок спит.", "contradiction")])
    assert batch.built == 1 and len(batch.pairs) == 0 and batch.dropped == {"other script": 1}


def test_the_first_positive_is_the_first_good_one() -> None:
    rows = {
        "query": ["Где живут пингвины?", "Что такое барометр?"],
        "pos": [["", "В Антарктиде."], [ENGLISH, "а"]],
        "neg": [["На крыше.", "В пустыне."], ["Прибор.", "Птица."]],
    }
    batch = made(rows, construction="query_pos_neg", positives="first", list_length=2)
    assert batch.pairs.rows() == [("Где живут пингвины?", "В Антарктиде.", ["В пустыне."], None)]
    assert batch.built == 2 and batch.dropped == {"other script": 1}


def test_negatives_are_drawn_from_those_that_can_be_used() -> None:
    rows = {"anchor": ["Вопрос?"] * 40, "positive": [f"Ответ {n}" for n in range(40)]}
    rows["negative"] = [["", f"ответ {n}!", "Вопрос", "Единственный другой."] for n in range(40)]
    batch = made(rows, construction="triplets", max_negatives=1)
    assert batch.pairs["negatives"].to_list() == [["Единственный другой."]] * 40 and not batch.dropped
    spread = made(rows, construction="triplets", negatives_as_rows=True)
    assert (spread.built, len(spread.pairs)) == (160, 40)
    assert spread.dropped == {"rows of a negative that is empty or equal to the positive": 120}


def test_a_group_of_paraphrases_takes_its_first_two_good_texts() -> None:
    texts = ["а", "Скоро вернусь.", FORBIDDEN, "скоро вернусь!", "Я скоро приду.", "Одна.", "одна!"]
    rows = {"group": ["1"] * 5 + ["2"] * 2, "text": texts}
    batch = made(rows, decontaminated=True, construction="paraphrase_groups")
    assert batch.pairs.rows() == [("Скоро вернусь.", "Я скоро приду.", [], None)]
    assert batch.built == 2 and batch.dropped == {"anchor equals positive": 1}


GOOD = ["Ребёнок рисует.", "Она рисует.", "Кто-то рисует.", "Девочка на улице."]
BAD = ["а", ENGLISH, "ДЕВОЧКА рисует мелом"]


@given(st.lists(st.tuples(st.sampled_from(GOOD + BAD), st.sampled_from(["entailment", "contradiction"])), max_size=10))
@settings(max_examples=80, deadline=None)
def test_a_premise_has_a_pair_where_a_loop_over_all_its_choices_finds_one(rows: list[tuple[str, str]]) -> None:
    entailed = [text for text, label in rows if label == "entailment" and text in GOOD]
    contrary = [text for text, label in rows if label == "contradiction" and text in [*GOOD, ENGLISH]]
    possible = [(text, other) for text in entailed for other in contrary if other != text]
    schema_safe = rows or [("Другое.", "neutral")]
    batch = nli(schema_safe)
    assert len(batch.pairs) == bool(possible)
    if possible:
        assert batch.pairs["positive"][0] == possible[0][0]
    assert batch.built == len(batch.pairs) + batch.dropped.total()
