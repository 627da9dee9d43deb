"""Pairs from Russian Wiktionary, read from the database in the installed package wiki_ru_wordnet.

The package (MIT; its contents CC BY-SA 3.0, authors of ru.wiktionary.org) has one row per word sense: synset, lemma
and the wiki source of the definition with its usage examples. The database is opened read-only in place.
"""

import importlib.metadata
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import xxhash

from pipeline.core.errors import UserError

STRESS = "\u0301"  # the stress mark of dictionaries, absent from running text
LEFT_OVER = re.compile(r"'{2,}|\[\[|\]\]|\{\{.*|\}\}|^[#*:]+")
SPACE_BEFORE = re.compile(r" ([,;:.!?)])")
EMPTY_OR_LEADING = re.compile(r"\( ?\)|^[ ,;:.\-—|]+")
UNREAD = re.compile(r"[|{}]|\[\[|\]\]|''")
PACKAGE = "wiki_ru_wordnet"
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
EXTERNAL_LINK = re.compile(r"\[https?://\S+\s*([^\]]*)\]")
NAMED = re.compile(r"\w+=")
TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
TAG = re.compile(r"<ref[^>]*/>|<ref.*?(?:</ref>|$)|<!--.*?-->|<[^<>]+>", re.DOTALL)
ITALIC_EXAMPLE = re.compile(r"(?<=[.;!?)])\s*''[^']+''\s*")
REFERENCE = re.compile(r"то же,? что ")
WORDED = {  # templates rendered as words; {} is their first argument
    "=": "то же, что {}",
    "-": "—",
    "--": "—",
    "выдел": "{}",
    "действие": "действие по значению глагола {}",
    "свойство": "свойство по значению прилагательного {}",
    "состояние": "состояние по значению прилагательного {}",
    "соотн.": "связанный, соотносящийся по значению с «{}»",
    "наречие": "наречие к {}",
    "женск.": "женск. к {}",
    "прич.": "причастие от {}",
    "дееприч.": "деепричастие от {}",
    "умласк.": "уменьшительно-ласкательное к {}",
    "уменьш.": "уменьшительное к {}",
    "увелич.": "увеличительное к {}",
    "сокр.": "сокращение от {}",
    "аббр.": "сокращение от {}",
    "итп": "и т. п.",
    "итд": "и т. д.",
    "lang": "{}",
    "s": "{}",
    "nobr": "{}",
    "кавычки": "«{}»",
}
SECOND_ARGUMENT = {"сокр.", "аббр.", "lang", "кавычки"}  # their first argument is a language or empty
SPLITS = {"evaluation": range(0, 5), "guard": range(5, 10), "train": range(10, 100)}  # percent of the terms
SPLIT_OF = {bucket: split for split, buckets in SPLITS.items() for bucket in buckets}
WIDESPREAD = 3  # a definition shared by more terms ("river in Russia") describes none of them in particular
LARGEST_SYNSET = 4  # most terms of a synset that are paired with each other


@dataclass(frozen=True)
class Sense:
    """One meaning of one term, cleaned of wiki markup."""

    synset: int
    term: str
    definition: str
    examples: tuple[str, ...]


def split_of(term: str) -> str:
    """The split of a term, a fixed function of its lower-case form: held-out terms don't depend on the config."""
    return SPLIT_OF[xxhash.xxh3_64_intdigest(term.lower().replace("ё", "е").encode()) % 100]


def package() -> importlib.metadata.Distribution:
    """The package, not imported: its connector opens the database for writing. Raises UserError where it is missing."""
    try:
        return importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        remedy = "install it with make setup, or choose a mixture without Wiktionary"
        raise UserError(f"the package {PACKAGE} is not installed", where="data.sources", remedy=remedy) from None


def database() -> Path:
    """The package's sqlite file."""
    return Path(str(package().locate_file(f"{PACKAGE}/database/wikiwordnet.db")))


def connect() -> sqlite3.Connection:
    """The database, read-only: not even a journal is written next to it."""
    return sqlite3.connect(f"file:{database()}?mode=ro&immutable=1", uri=True)


@cache
def senses() -> tuple[Sense, ...]:
    """All senses with a definition, in the order of the database."""
    with closing(connect()) as connection:
        rows = connection.execute("SELECT synset_id, lemma, definition FROM synsets ORDER BY rowid").fetchall()
    parsed = (  # an entry is lemma~ru~lemma~ru~wiki source~id~id
        Sense(synset, lemma.strip(), *parse(entry.split("~", 4)[4].rsplit("~", 2)[0])) for synset, lemma, entry in rows
    )
    return tuple(sense for sense in parsed if sense.definition)


def parse(source: str) -> tuple[str, tuple[str, ...]]:
    """Definition and usage examples of one sense's wiki source."""
    text = source.split("\n#")[0].replace("\xa0", " ").replace("&nbsp;", " ")
    text = LINK.sub(r"\1", text)
    if "<" in text:
        text = TAG.sub(" ", text)
    if "[http" in text:
        text = EXTERNAL_LINK.sub(r"\1", text)
    examples: list[str] = []
    found = 1
    while found:  # the innermost ones first
        text, found = TEMPLATE.subn(lambda match: _words(match[1], examples), text)
    text = ITALIC_EXAMPLE.sub(" ", text) if "''" in text else text
    return _tidy(text), tuple(tidied for example in examples if (tidied := _tidy(example)))


def _words(content: str, examples: list[str]) -> str:
    """A template as words; usage examples go to `examples`, style labels are dropped."""
    name, *arguments = (part.strip() for part in content.split("|"))
    positional = [argument for argument in arguments if "=" not in argument or not NAMED.match(argument)]
    if name == "пример":
        named = [argument.removeprefix("текст=") for argument in arguments if argument.startswith("текст=")]
        examples.extend((positional or named)[:1])
        return " "
    wanted = 1 if name in SECOND_ARGUMENT and len(positional) > 1 else 0
    if name not in WORDED or ("{}" in WORDED[name] and len(positional) <= wanted):
        return " "
    return WORDED[name].format(*positional[wanted : wanted + 1])


def _tidy(text: str) -> str:
    """Plain text; empty where unknown markup is left."""
    text = LEFT_OVER.sub(" ", text.replace(STRESS, ""))
    text = " ".join(text.replace("||", "; ").split())  # || separates shades of one meaning
    text = EMPTY_OR_LEADING.sub(" ", SPACE_BEFORE.sub(r"\1", text)).strip(" ;,|")
    return "" if UNREAD.search(text) else text


def _of_split(split: str) -> Iterator[Sense]:
    """The split's senses whose definition is specific to the term."""
    counts = _terms_per_definition()
    for sense in senses():
        if split_of(sense.term) == split and counts[sense.definition] <= WIDESPREAD:
            yield sense


@cache
def _terms_per_definition() -> dict[str, int]:
    terms: dict[str, set[str]] = defaultdict(set)
    for sense in senses():
        terms[sense.definition].add(sense.term)
    return {definition: len(members) for definition, members in terms.items()}


class WiktionaryReader:
    """Shared by the readers: their split and the package's revision."""

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            names = ", ".join(SPLITS)
            raise UserError(f"unknown split {split}", where="reader_options.split", remedy=f"choose one of {names}")
        self.split = split
        self.revision = f"{PACKAGE} {package().version}"


class TermDefinitions(WiktionaryReader):
    """(term → definition) of dictionary entries; `unique` yields each term and each definition once."""

    def __init__(self, split: str = "train", unique: str = "no") -> None:
        super().__init__(split)
        self.unique = unique == "yes"

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(term, definition); one-word definitions are left out."""
        seen: set[str] = set()
        for sense in _of_split(self.split):
            if " " not in sense.definition or (self.unique and seen & {sense.term, sense.definition}):
                continue
            seen |= {sense.term, sense.definition}
            yield sense.term, sense.definition


class TermUsages(WiktionaryReader):
    """(term — definition → usage example): a sense and a sentence that uses it."""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(term — definition, example); examples of fewer than three words are left out."""
        for sense in _of_split(self.split):
            for example in sense.examples:
                if example.count(" ") >= 2:
                    yield f"{sense.term} — {sense.definition}", example


class SameSense(WiktionaryReader):
    """(definition ↔ definition) of two terms of one synset, and (term ↔ term) of synonyms.

    Both are symmetric by nature: two definitions describe one meaning, and synonymy has no direction. A synset that
    contains a term twice mixes senses and is left out; a definition that only refers to the other term gives a pair
    of terms, not of definitions.
    """

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(anchor, positive); both terms of a pair belong to the split."""
        synsets: dict[int, list[Sense]] = defaultdict(list)
        for sense in senses():
            synsets[sense.synset].append(sense)
        for members in synsets.values():
            terms = {sense.term.lower() for sense in members}
            if len(terms) == len(members):
                chosen = [sense for sense in members if split_of(sense.term) == self.split]
                for left, right in combinations(chosen[:LARGEST_SYNSET], 2):
                    yield left.term, right.term
                    if self._both_describe(left.definition, right.definition):
                        yield left.definition, right.definition

    @staticmethod
    def _both_describe(left: str, right: str) -> bool:
        return left != right and not any(
            REFERENCE.match(definition) or " " not in definition or _terms_per_definition()[definition] > WIDESPREAD
            for definition in (left, right)
        )
