"""Counts of pieces for each language, over all corpora."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.console import progress
from pipeline.errors import UserError
from training.config_base import BY_SCRIPT
from training.vocabulary.corpora import Corpus
from training.vocabulary.counting import Counts, WordCounter, end_tokens, piece_counts
from training.vocabulary.scripts import ScriptSorter

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class LanguageCounts:
    """What counting found."""

    occurrences: dict[str, Counts]  # language -> how often each id occurs, special tokens of the ends included
    texts: dict[str, int]  # corpus -> texts
    words: int  # distinct words, each segmented once


def count_pieces(corpora: list[Corpus], tokenizer: "Tokenizer", languages: list[str], size: int) -> LanguageCounts:
    """Count the pieces of all corpora for each language.

    Raises:
        UserError: a corpus without texts, a language without any, or what reading a corpus raises.
    """
    counters: dict[str, WordCounter] = {}
    texts: dict[str, int] = {}
    for corpus in progress(corpora, "counting words", total=len(corpora)):
        texts[corpus.name] = _count_words(corpus, tokenizer, languages, counters)
        if not texts[corpus.name]:
            where = f"{corpus.name}: {', '.join(map(str, corpus.files[:3]))}"
            raise UserError("a corpus has no texts", where=where, remedy="mend init.corpora or the file")
    occurrences = {}
    for language, words, whole, ends in _by_language(counters, languages):
        if not words and not whole:
            remedy = "add a corpus for it under init.corpora, or take it out of languages"
            raise UserError(
                f"no text of language {language} in the corpora", where="config key languages", remedy=remedy
            )
        occurrences[language] = piece_counts(tokenizer, words, whole, size)
        for token in end_tokens(tokenizer):
            occurrences[language][token] += ends
    return LanguageCounts(occurrences, texts, sum(len(counter.words) for counter in counters.values()))


def _count_words(corpus: Corpus, tokenizer: "Tokenizer", languages: list[str], counters: dict[str, WordCounter]) -> int:
    """Add the corpus' words to the counters of its languages; returns its number of texts."""
    number = 0
    for language, batch in corpus.texts():
        number += len(batch)
        if language not in counters and language in (*languages, BY_SCRIPT):
            counters[language] = WordCounter(tokenizer)
        if language in counters:
            counters[language].add(batch)
    return number


def _by_language(
    counters: Mapping[str, WordCounter], languages: list[str]
) -> Iterator[tuple[str, Counter[str], Counter[str], int]]:
    """(language, words, whole texts, number of texts); the words of mixed corpora go where their script belongs.

    Texts of mixed corpora have no language of their own: their ends are counted with the first one.
    """
    mixed = counters.get(BY_SCRIPT)
    sorted_words: dict[str, Counter[str]] = {language: Counter() for language in languages}
    sorted_whole: dict[str, Counter[str]] = {language: Counter() for language in languages}
    if mixed:
        language_of = ScriptSorter(languages).language
        for given, taken in ((mixed.words, sorted_words), (mixed.whole, sorted_whole)):
            for word, count in given.items():
                taken[language_of(word)][word] = count
    for place, language in enumerate(languages):
        ends = mixed.texts if mixed and place == 0 else 0
        words, whole = sorted_words[language], sorted_whole[language]
        if own := counters.get(language):
            words.update(own.words)
            whole.update(own.whole)
            ends += own.texts
        yield language, words, whole, ends
