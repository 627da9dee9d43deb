"""Pairs from the installed dictionary: parsed wiki markup, a fixed split of the terms."""

import importlib.util
import sqlite3
from pathlib import Path

import pytest

from data.sources import wiktionary
from data.sources.wiktionary import SPLITS, SameSense, TermDefinitions, TermUsages, parse, split_of

INSTALLED = importlib.util.find_spec(wiktionary.PACKAGE)
installed = pytest.mark.skipif(not INSTALLED, reason="wiki_ru_wordnet is not installed")


@pytest.mark.parametrize(
    ("source", "definition", "examples"),
    [
        (
            "{{разг.|ru}} [[холодный|холодная]] [[погода]] {{пример|Такой {{выдел|дубак}}!|автор=А. Б.}}",
            "холодная погода",
            ("Такой дубак!",),
        ),
        ("{{=|просить}}, обращаться {{пример}} {{пример|}}", "то же, что просить, обращаться", ()),
        (
            "{{действие|рубить}}; [[вырубка]] {{итп}} {{пример|Рубка [[лес]]а.|Ф. И. О.|Книга|1999}}",
            "действие по значению глагола рубить; вырубка и т. п.",
            ("Рубка леса.",),
        ),
        (
            "{{сокр.||Кабардино-Балкарская Республика}} — республика",
            "сокращение от Кабардино-Балкарская Республика — республика",
            (),
        ),
        ("житель района. ''Молодой вилегодец.''\n#\n#", "житель района.", ()),
        ("{{пример|{{--}}{{выдел|Ё}}, Вася!}}", "", ("Ё, Вася!",)),
        (
            "линия&nbsp;связи<ref>источник</ref> {{пример|текст=Линия готова.|автор=X}}",
            "линия связи",
            ("Линия готова.",),
        ),
    ],
)
def test_wiki_markup_becomes_text(source: str, definition: str, examples: tuple[str, ...]) -> None:
    assert parse(source) == (definition, examples)


def test_the_split_of_a_term_ignores_case_and_yo() -> None:
    assert split_of("Ёлка") == split_of("елка")
    assert sorted(bucket for buckets in SPLITS.values() for bucket in buckets) == list(range(100))


@installed
@pytest.mark.parametrize(("reader", "least"), [(TermDefinitions, 65_000), (TermUsages, 50_000), (SameSense, 15_000)])
def test_no_term_is_in_two_splits(reader: type, least: int) -> None:
    pairs = {split: list(reader(split=split).pairs()) for split in SPLITS}
    assert len(pairs["train"]) >= least
    anchors = {split: {anchor.partition(" — ")[0].lower() for anchor, _ in pairs[split]} for split in SPLITS}
    if reader is not SameSense:  # its anchors are also definitions
        assert not anchors["train"] & anchors["evaluation"] and not anchors["train"] & anchors["guard"]
        assert not anchors["evaluation"] & anchors["guard"]


@installed
def test_held_out_terms_are_many_and_each_has_one_definition() -> None:
    pairs = list(TermDefinitions(split="evaluation", unique="yes").pairs())
    assert len(pairs) >= 1500
    assert len({term for term, _ in pairs}) == len({definition for _, definition in pairs}) == len(pairs)


@installed
def test_texts_are_free_of_wiki_markup() -> None:
    texts = [text for reader in (TermDefinitions, TermUsages, SameSense) for pair in reader().pairs() for text in pair]
    marked = [text for text in texts if any(mark in text for mark in ("{{", "}}", "[[", "]]", "''", "|"))]
    assert not marked


@installed
def test_the_database_is_only_read() -> None:
    before = {path: path.stat() for path in Path(wiktionary.database()).parent.iterdir()}
    assert wiktionary.senses()
    after = {path: path.stat() for path in Path(wiktionary.database()).parent.iterdir()}
    assert {path: (stat.st_size, stat.st_mtime_ns) for path, stat in before.items()} == {
        path: (stat.st_size, stat.st_mtime_ns) for path, stat in after.items()
    }
    with pytest.raises(sqlite3.OperationalError):
        wiktionary.connect().execute("CREATE TABLE planted (x)")
