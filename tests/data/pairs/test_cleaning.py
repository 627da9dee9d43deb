"""Cleaning on whole columns against the same rules in plain Python, text by text."""

import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import data_with_datasets as oracle
from configs.schema.data import CleaningConfig, SourceConfig
from data.pairs.cleaning import comparable, drop_reasons, normalised, other_script, without_wrong_negatives

PIECES = [
    "мир",
    "Ёж",
    " ",
    "  ",
    "\n",
    " \n ",
    "\t",
    "\u00a0",
    "\u200b",
    "и\u0306",
    "<b>",
    "</s>",
    "<mask>",
    "&nbsp;",
    "&laquo;",
    "a < b",
    "<<48/2=24>>",
    "<unk>",
    "fox",
    "5",
    "!",
    "\r\n",
    "&",
    "<|user|>",
    "«",
    "\ufeff",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
SOURCE = SourceConfig(title="x", side="symmetric")
CLEANING = CleaningConfig()


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=200, deadline=None)
def test_normalisation_agrees_with_plain_python(texts: list[str]) -> None:
    found = normalised(pl.Series(texts, dtype=pl.String), CLEANING, strip_markup=True).to_list()
    assert found == [oracle.normalised(text) for text in texts]


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=100, deadline=None)
def test_normalised_texts_stay_as_they_are(texts: list[str]) -> None:
    once = normalised(pl.Series(texts, dtype=pl.String), CLEANING, strip_markup=False)
    assert normalised(once, CLEANING, strip_markup=False).equals(once)


@given(st.lists(st.text(alphabet="абвгёЁАБabc 12.,!?-—«»\n", max_size=60), max_size=6))
@settings(max_examples=100, deadline=None)
def test_comparable_form_and_script_agree_with_plain_python(texts: list[str]) -> None:
    column = pl.Series(texts, dtype=pl.String)
    assert comparable(column).to_list() == [oracle.comparable(text) for text in texts]
    assert other_script(column, "Cyrillic", 0.4, 20).to_list() == [oracle.other_script(text) for text in texts]


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_unicode_forms(form: str) -> None:
    texts = ["ﬁn И\u0306од x²", "\u212b"]
    found = normalised(pl.Series(texts), CleaningConfig(unicode=form), strip_markup=True).to_list()
    assert found == [unicodedata.normalize(form, text) for text in texts]


def test_markup_and_cutting_are_settings() -> None:
    text = pl.Series(["<p>Длинный  текст</p>"])
    assert normalised(text, CLEANING, strip_markup=False).to_list() == ["<p>Длинный текст</p>"]
    assert normalised(text, CleaningConfig(cut_characters=7), strip_markup=True).to_list() == ["Длинный"]


def pairs(rows: list[tuple[str, str, list[str]]]) -> pl.DataFrame:
    schema = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_every_reason_to_drop_a_pair() -> None:
    english = "This sentence is written in English."
    rows = {
        None: ("Хороший вопрос", "Хороший ответ"),
        "empty text": ("", "Ответ"),
        "too short": ("а", "Ответ"),
        "too long": ("Вопрос", "д" * 100_001),
        "anchor equals positive": ("Ёлка, ёлка!", "елка — ЕЛКА"),
        "other script": ("Вопрос", english),
    }
    frame = pairs([(*texts, []) for texts in rows.values()])
    assert drop_reasons(frame, CLEANING, SOURCE).to_list() == list(rows)
    foreign = SourceConfig(title="x", side="symmetric", min_script_share=0.0)
    assert drop_reasons(pairs([("Вопрос", english, [])]), CLEANING, foreign).to_list() == [None]


def test_short_foreign_titles_and_mixed_texts_pass() -> None:
    texts = pl.Series(["iPhone 15 Pro", "Компания Microsoft выпустила новую версию Windows 12"])
    assert other_script(texts, "Cyrillic", 0.4, 20).to_list() == [False, False]


def test_negatives_that_equal_the_pair_are_dropped_and_counted() -> None:
    frame = pairs(
        [("Вопрос", "Ответ", ["ответ!", "Другое", "", "вопрос?"]), ("Иное", "Да", []), ("Ещё", "Нет", ["Да"])]
    )
    kept, dropped = without_wrong_negatives(frame, 2)
    assert kept["negatives"].to_list() == [["Другое"], [], ["Да"]]
    assert dropped == 3
