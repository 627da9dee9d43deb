"""Counts of pieces for each language, over all corpora."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import polars
import pyarrow as pa
from tokenizers import Tokenizer

from configs.schema.init import BY_SCRIPT
from pipeline.core.errors import UserError
from training.vocabulary.corpora import Corpus
from training.vocabulary.counting import WORDS, PieceCounts, WordCounter, piece_counts
from training.vocabulary.selection import OTHER, SCRIPTS, scripts_of

WHOLE = 100_000  # texts that can't be cut into words are held up to this number
FOREIGN = r"[\p{L}--[\p{Common}\p{Inherited}]]"  # matched on words without a letter of the languages' scripts


@dataclass(frozen=True)
class LanguageCounts:
    """The counts of pieces and texts."""

    occurrences: dict[str, PieceCounts]  # language -> how often each id occurs, with the special tokens at the ends
    others: PieceCounts  # the same for words in scripts of none of the languages
    texts: dict[str, int]  # corpus -> texts, repeated ones included


def count_pieces(
    corpora: list[Corpus], tokenizer: Tokenizer, languages: list[str], size: int, scripts: Sequence[str] = ()
) -> LanguageCounts:
    """Count the pieces of all corpora for each language; `scripts` are those of unknown languages.

    A text is counted once for a language, however often it occurs in the corpora: a passage that is the negative of a
    hundred queries says no more about the language than one of a single query.

    Raises UserError: a corpus without texts, a language without any, or what reading a corpus raises.
    """
    counters: dict[str, WordCounter] = {}
    texts: dict[str, int] = {}
    occurrences = {name: np.zeros(size, dtype=np.int64) for name in (*languages, OTHER)}

    def sum_up(name: str, words: polars.DataFrame, whole: Mapping[str, int]) -> None:
        parts = _by_script(words, whole, languages, scripts) if name == BY_SCRIPT else [(name, words, whole)]
        for language, own_words, own_whole in parts:
            occurrences[language] += piece_counts(tokenizer, own_words, own_whole, size)

    for name, batch in _batches(corpora, texts):
        if name not in counters and name in (*languages, BY_SCRIPT):
            counters[name] = WordCounter(tokenizer)
        if counter := counters.get(name):
            counter.add(batch)
            if len(counter.whole) > WHOLE:
                sum_up(name, polars.DataFrame(schema=WORDS), counter.whole)
                counter.whole.clear()
    for name, counter in counters.items():
        sum_up(name, counter.words(), counter.whole)
    for language in languages:
        if not occurrences[language].any():
            remedy = "add a corpus for it under init.corpora, or take it out of languages"
            raise UserError(
                f"no text of language {language} in the corpora", where="config key languages", remedy=remedy
            )
    for name, counter in counters.items():  # texts of mixed corpora have no language of their own: the first one's
        for token in tokenizer.encode("").ids:  # the special tokens that each text gets, such as <s> and </s>
            occurrences[languages[0] if name == BY_SCRIPT else name][token] += counter.texts
    return LanguageCounts(occurrences, others=occurrences.pop(OTHER), texts=texts)


def _batches(corpora: list[Corpus], texts: dict[str, int]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """(language or BY_SCRIPT, texts) of all corpora, in batches; puts the number of each corpus's into `texts`."""
    for corpus in corpora:
        texts[corpus.name] = 0
        for name, batch in corpus.texts("counting words"):
            texts[corpus.name] += len(batch)
            yield name, batch
        if not texts[corpus.name]:
            where = f"{corpus.name}: {', '.join(map(str, corpus.files[:3]))}"
            raise UserError("a corpus has no texts", where=where, remedy="correct init.corpora or the file")


def _by_script(
    words: polars.DataFrame, whole: Mapping[str, int], languages: list[str], further: Sequence[str]
) -> Iterator[tuple[str, polars.DataFrame, Mapping[str, int]]]:
    """Words and whole texts of mixed corpora by language: those whose first known script is one of the language's own.

    Languages that share a script each count all its words. Words without letters go to the first language, those with
    letters of other scripts only to OTHER. An unknown language is assumed to be written in the first of the `further`
    scripts.
    """
    scripts = {name: SCRIPTS.get(name) or scripts_of([name], further)[:1] for name in languages}
    found = polars.coalesce(
        *(polars.when(polars.col("word").str.contains(rf"\p{{{script}}}")).then(polars.lit(script))
          for script in dict.fromkeys(chain.from_iterable(scripts.values()))),
        polars.when(polars.col("word").str.contains(FOREIGN)).then(polars.lit(OTHER)),
        polars.lit(scripts[languages[0]][0]),
    )  # fmt: skip
    words = words.with_columns(script=found)
    texts = polars.DataFrame(list(whole.items()), schema=WORDS, orient="row").with_columns(script=found)
    for name, own_scripts in {**scripts, OTHER: [OTHER]}.items():
        is_own = polars.col("script").is_in(own_scripts)
        own = texts.filter(is_own)
        yield name, words.filter(is_own), dict(zip(own["word"], own["count"], strict=True))
