"""Cleaning on whole columns against the same rules in plain Python, text by text."""

import sys
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import data_with_datasets as oracle
from configs.schema.data import CleaningConfig, SourceConfig
from data.pairs.cleaning import (
    Changes,
    comparable,
    drop_reasons,
    normalised,
    other_script,
    without_wrong_negatives,
)

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
    "\u00ad",
    "\u200d",
    "\x0c",
    "\x00",
    "\u2028",
    "&copy=2",
    "&lt;b&gt;",
    "&#769;",
    "&nosuch;",
    "<b и c>",
    "<a href='x'>",
    "<!-- \n -->",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
SOURCE = SourceConfig(title="x", side="symmetric")
CLEANING = CleaningConfig()


def cleaned(texts: list[str], cleaning: CleaningConfig = CLEANING, strip_markup: bool = True) -> list[str]:
    return normalised(pl.Series(texts, dtype=pl.String), cleaning, strip_markup, Changes()).to_list()


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=200, deadline=None)
def test_normalisation_agrees_with_plain_python(texts: list[str]) -> None:
    found = cleaned(texts)
    assert found == [oracle.normalised(text) for text in texts]


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=100, deadline=None)
def test_normalised_texts_stay_as_they_are(texts: list[str]) -> None:
    once = cleaned(texts, strip_markup=False)
    assert cleaned(once, strip_markup=False) == once


@given(st.lists(st.text(alphabet="абвгёЁАБabc 12.,!?-—«»\n", max_size=60), max_size=6))
@settings(max_examples=100, deadline=None)
def test_comparable_form_and_script_agree_with_plain_python(texts: list[str]) -> None:
    column = pl.Series(texts, dtype=pl.String)
    assert comparable(column).to_list() == [oracle.comparable(text) for text in texts]
    assert other_script(column, "Cyrillic", 0.4).to_list() == [oracle.other_script(text) for text in texts]


def test_a_missing_text_is_empty() -> None:
    assert normalised(pl.Series([None, "да"]), CLEANING, True, Changes()).to_list() == ["", "да"]


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_unicode_forms(form: str) -> None:
    texts = ["ﬁn И\u0306од x²", "\u212b"]
    found = cleaned(texts, CleaningConfig(unicode=form))
    assert found == [unicodedata.normalize(form, text) for text in texts]


def test_what_has_another_composed_form_gets_it() -> None:
    texts = [text for text in map(chr, range(sys.maxunicode)) if not unicodedata.is_normalized("NFC", text)]
    texts.append(unicodedata.normalize("NFD", "한국어 문장"))
    assert cleaned(texts) == [oracle.normalised(text) for text in texts]


def test_markup_may_stay() -> None:
    assert cleaned(["<p>Длинный  текст</p>"], strip_markup=False) == ["<p>Длинный текст</p>"]


KEPT = [
    "если a <b и c> d",
    "если a<b, то c>d",
    "<b and c> и </b c>",
    "x<y и <город> на карте",
    "адрес /?id=1&section=3&copy=2&lt=5",
    "Рога & Копыта, AT&T; &такая;",
    "&notit; и &nosuch;",
    "вопрос -> ответ <- 3 < 5 > 2",
    "семья 👨\u200d👩\u200d👧 и флаг 🏴\u200d☠️",
    "می\u200cخواهم",
    "क्\u200dष",
]
CLEANED = {
    "<p class=x id = 'y'>Абзац</p><br/>конец <img src=a.png hidden>": "Абзац конец",
    "до <!-- заметка\nв две строки --> после": "до после",
    "&laquo;Ёлка&raquo; &amp;amp; &#1071;&#x42f;": "«Ёлка» &amp; ЯЯ",
    "тег &lt;b&gt; делает жирным": "тег <b> делает жирным",
    "знак &lt;/s&gt; и <mask> и <|user|> для модели": "знак и и для модели",
    "Красный\u200bкот": "Красный кот",
    "мяг\u00adкий сло\u200dво сло\u200cво \u2060вместе\ufeff": "мягкий слово слово вместе",
    "\u202eсправа налево\u202c": "справа налево",
    "нуль\x00байт": "нуль байт",
    "\x1b[31mдвух\x1b[1mцветный\x1b[0m": "двухцветный",
    "\u200d👨 и 👩\u200d": "👨 и 👩",
    "страница\x0cстраница\u2028строка": "страница\nстраница\nстрока",
    "и&#774; ёлка": "й ёлка",
}


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_markup_or_means_something_stays(text: str) -> None:
    assert cleaned([text]) == [text]


@pytest.mark.parametrize("text", CLEANED)
def test_markup_is_removed_and_every_character_is_cleaned_by_its_meaning(text: str) -> None:
    assert cleaned([text]) == [CLEANED[text]]


def test_changes_are_counted_by_rule_with_examples_that_show_them() -> None:
    texts = [f"Слово {number} &laquo;в кавычках&raquo;" for number in range(5)]
    texts += ["Чистый текст", "о" * 100 + "дин\u200bдва", "<b>Жирный</b>  шрифт"]
    changes = Changes()
    normalised(pl.Series(texts[:3]), CLEANING, True, changes)
    later = Changes()
    normalised(pl.Series(texts[3:]), CLEANING, True, later)
    changes.update(later)
    assert changes.by_rule() == {"tags": 1, "entities": 5, "invisible characters": 1, "spaces": 1}
    assert changes.chosen() == [
        ("tags", "<b>Жирный</b>  шрифт", " Жирный   шрифт"),
        ("entities", "Слово 0 &laquo;в кавычках&raquo;", "Слово 0 «в кавычках»"),
        ("invisible characters", "…" + "о" * 17 + "дин\\u200bдва", "…" + "о" * 17 + "дин два"),
    ]
    only = Changes()
    normalised(pl.Series(texts[:1] + texts[:5]), CLEANING, True, only)
    assert [before[6] for _, before, _ in only.chosen()] == ["0", "1", "2"]
    normalised(pl.Series(texts[:2]), CLEANING, True, only)
    assert only.by_rule() == {"entities": 8}


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
    more: dict[tuple[str, str], str | None] = {
        ("Вопрос", "д" * 100_000): None,
        ("а", "А"): "too short",  # before it is equal
        ("Да", "«Да!»"): "anchor equals positive",
        ("слово " * 50, "слово, " * 50): "anchor equals positive",
        (english, "Ответ"): "other script",
    }
    assert drop_reasons(pairs([(*texts, []) for texts in more]), CLEANING, SOURCE).to_list() == list(more.values())
    foreign = SourceConfig(title="x", side="symmetric", min_script_share=0.0)
    assert drop_reasons(pairs([("Вопрос", english, [])]), CLEANING, foreign).to_list() == [None]


def test_texts_without_letters_and_digits_are_equal_only_if_identical() -> None:
    frame = pairs([("Что?!", "…!", []), ("?!", "…!", []), ("?!", "?!", []), (" — ", "—", ["!!", "— "])])
    assert drop_reasons(frame[:3], CLEANING, SOURCE).to_list() == [None, None, "anchor equals positive"]
    assert without_wrong_negatives(frame, 1)["negatives"].to_list()[3] == ["!!", "— "]


def test_short_foreign_titles_and_mixed_texts_pass() -> None:
    texts = pl.Series(["iPhone 15 Pro", "Компания Microsoft выпустила новую версию Windows 12"])
    assert other_script(texts, "Cyrillic", 0.4).to_list() == [False, False]
    bounds = pl.Series(["x" * 20, "x" * 19, "д" * 8 + "x" * 12, "д" * 200 + "x" * 900])  # a text's beginning decides
    assert other_script(bounds, "Cyrillic", 0.4).to_list() == [True, False, False, False]


def test_negatives_that_equal_the_pair_are_dropped() -> None:
    frame = pairs(
        [
            ("Вопрос", "Ответ", ["ответ!", "Другое", "", "вопрос?"]),
            ("Иное", "Да", []),
            ("Ещё", "Нет", ["Да"]),
            ("Пять", "Шесть", []),
        ]
    )
    assert without_wrong_negatives(frame, 2)["negatives"].to_list() == [["Другое"], [], ["Да"], []]
