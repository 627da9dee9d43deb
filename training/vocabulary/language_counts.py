"""Counts of pieces for each language, over all corpora."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars
from tokenizers import Tokenizer

from configs.schema.init import BY_SCRIPT
from pipeline.core.errors import UserError
from training.vocabulary.corpora import Corpus
from training.vocabulary.counting import WORDS, PieceCounts, WordCounter, piece_counts
from training.vocabulary.selection import OTHER, scripts_of

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
    for corpus in corpora:
        texts[corpus.name] = 0
        for language, batch in corpus.texts("counting words"):
            texts[corpus.name] += len(batch)
            if language not in counters and language in (*languages, BY_SCRIPT):
                counters[language] = WordCounter(tokenizer)
            if language in counters:
                counters[language].add(batch)
        if not texts[corpus.name]:
            where = f"{corpus.name}: {', '.join(map(str, corpus.files[:3]))}"
            raise UserError("a corpus has no texts", where=where, remedy="correct init.corpora or the file")
    occurrences = {OTHER: np.zeros(size, dtype=np.int64)}
    for language, words, whole, ends in _by_language(counters, languages, scripts):
        if language != OTHER and not len(words) and not whole:
            remedy = "add a corpus for it under init.corpora, or take it out of languages"
            raise UserError(
                f"no text of language {language} in the corpora", where="config key languages", remedy=remedy
            )
        occurrences[language] = piece_counts(tokenizer, words, whole, size)
        for token in tokenizer.encode("").ids:  # the special tokens that each text gets, such as <s> and </s>
            occurrences[language][token] += ends
    return LanguageCounts(occurrences, others=occurrences.pop(OTHER), texts=texts)


def _by_language(
    counters: Mapping[str, WordCounter], languages: list[str], scripts: Sequence[str]
) -> Iterator[tuple[str, polars.DataFrame, Counter[str], int]]:
    """(language, words, whole texts, number of texts); the words of mixed corpora go to the language of their script.

    Words of foreign scripts come last, as those of OTHER. Texts of mixed corpora have no language of their own: their
    ends are counted with the first one.
    """
    mixed = counters.get(BY_SCRIPT)
    # An unknown language is assumed to be written in the first of the further scripts.
    parts = _by_script(mixed, {name: scripts_of([name], scripts)[0] for name in languages}) if mixed else {}
    for place, language in enumerate(languages):
        ends = mixed.texts if mixed and place == 0 else 0
        words, whole = [], Counter[str]()
        if language in parts:
            words.append(parts[language][0])
            whole.update(parts[language][1])
        if own := counters.get(language):
            words.append(own.words())
            whole.update(own.whole)
            ends += own.texts
        yield language, polars.concat([polars.DataFrame(schema=WORDS), *words]), whole, ends
    if mixed:
        yield OTHER, *parts[OTHER], 0


def _by_script(counter: WordCounter, scripts: Mapping[str, str]) -> dict[str, tuple[polars.DataFrame, Counter[str]]]:
    """Words and whole texts of a mixed corpus by language: those whose first known script is the language's own.

    Languages that share a script each count all its words. Words without letters go to the first language, those with
    letters of other scripts only to OTHER.
    """
    whole = polars.DataFrame(list(counter.whole.items()), schema=WORDS, orient="row")
    found = polars.coalesce(
        *(polars.when(polars.col("word").str.contains(rf"\p{{{script}}}")).then(polars.lit(script))
          for script in dict.fromkeys(scripts.values())),
        polars.when(polars.col("word").str.contains(FOREIGN)).then(polars.lit(OTHER)),
        polars.lit(next(iter(scripts.values()))),
    )  # fmt: skip
    parts = {}
    words, whole = counter.words().with_columns(script=found), whole.with_columns(script=found)
    for name, script in {**scripts, OTHER: OTHER}.items():
        own = whole.filter(script=script)
        parts[name] = (
            words.filter(script=script).drop("script"),
            Counter(dict(zip(own["word"], own["count"], strict=True))),
        )
    return parts
