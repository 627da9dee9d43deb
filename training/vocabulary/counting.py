"""Counting pieces for each language over whole corpora by segmenting each distinct word once.

Tokenizers of XLM-R's and BERT's kind cut text at spaces before the model sees it, so a text's pieces are those of its
words, and a word's pieces can be multiplied by its count. Spaces are safe to cut at only between characters that
neither the normaliser nor Unicode's grapheme rules tie to a space; what remains is segmented uncut, and so are all
texts for other tokenizers.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import polars
import pyarrow as pa
from tokenizers import Tokenizer

from configs.schema.init import BY_SCRIPT
from data.pairs.hashing import SeenHashes, text_hashes
from pipeline.core.errors import UserError
from training.vocabulary.corpora import Corpus
from training.vocabulary.selection import OTHER, SCRIPTS, scripts_of

JOINED = 64  # words in one text given to the tokenizer: fewer calls, and still enough texts for all cores
TEXTS = 4096  # texts split together: the words of so many long articles take hundreds of megabytes
ROWS = 5_000_000  # fewest rows of counted words, repeats included, that are held before they are summed
ENCODED = 8192  # joined texts segmented together
LOCAL_NORMALIZERS = ("Precompiled", "Strip", "NFKC", "NFC", "Lowercase", "BertNormalizer")
SPACE_RUNS = ({"Regex": " {2,}"}, {"Regex": " +"})
METASPACE = "▁"
PREPENDED = "\u0d4e"  # letters with Grapheme_Cluster_Break=Prepend; the others are beyond the first plane
PieceCounts = npt.NDArray[np.int64]
WORDS = {"word": polars.String, "count": polars.Int64}  # the columns of counted words
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
            what = f"no text of language {language} in the corpora"
            remedy = "add a corpus for it under init.corpora, or take it out of languages"
            raise UserError(what, where="config key languages", remedy=remedy)
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


class WordCounter:
    """Words of distinct texts and how often they occur, ready to be turned into counts of pieces.

    Attributes:
        whole: starts and ends of texts, and texts that can't be cut; they are segmented one by one.
        texts: number of distinct texts added; tracking them takes 8 bytes per text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.whole: Counter[str] = Counter()
        self.texts = 0
        self._seen = SeenHashes()
        self._counted: list[polars.DataFrame] = []
        # Texts of the added tokens, which are cut out of a text before anything else.
        added = tokenizer.get_added_tokens_decoder().values()
        self._literals = polars.Series([token.content for token in added], dtype=polars.String).implode()
        self._safe = safe_characters(tokenizer) if cuts_at_spaces(tokenizer) else ""

    def add(self, texts: Sequence[str] | pa.ChunkedArray) -> None:
        """Add the words of those texts that were not added before."""
        given = polars.Series("word", texts).cast(polars.String)
        new = given.filter(polars.Series(self._seen.add_new(text_hashes(given)), dtype=polars.Boolean))
        self.texts += len(new)
        new = new.filter(new != "")
        for start in range(0, len(new), TEXTS):
            self._cut(new.slice(start, TEXTS))

    def words(self) -> polars.DataFrame:
        """Columns word and count: the text between two safe spaces, each distinct word once."""
        counted = polars.concat([polars.DataFrame(schema=WORDS), *self._counted], how="vertical_relaxed")
        return counted.group_by("word").sum()

    def _cut(self, texts: polars.Series) -> None:
        """Count the words between safe spaces; a text's start or end that is not safe itself goes to `whole`."""
        if not self._safe:
            self.whole.update(texts)
            return
        uncut = texts.str.contains_any(self._literals)
        self.whole.update(texts.filter(uncut))
        text, word, starts, ends = map(polars.col, ("text", "word", "starts", "ends"))
        parts = texts.filter(~uncut).to_frame().with_row_index("text").with_columns(word.str.split(" ")).explode("word")
        parts = parts.with_columns(
            starts=word.str.contains(f"^[{self._safe}]"), ends=word.str.contains(f"[{self._safe}]$")
        )
        cut = text.ne_missing(text.shift()) | (starts & ends.shift())  # from the part before
        parts = parts.with_columns(number=cut.cum_sum(), alone=cut & cut.shift(-1, fill_value=True))
        alone, others = parts.filter("alone"), parts.filter(~polars.col("alone"))
        joined = others.group_by("number").agg(word.str.join(" "), starts.first(), ends.last())
        found = polars.concat([part.select("word", safe=starts & ends) for part in (alone, joined)])
        self._counted.append(found.filter("safe")["word"].value_counts())
        self.whole.update(found.filter(~polars.col("safe"))["word"])
        if sum(map(len, self._counted[1:])) > max(ROWS, len(self._counted[0])):
            self._counted = [self.words()]


def piece_counts(tokenizer: Tokenizer, words: polars.DataFrame, whole: Mapping[str, int], size: int) -> PieceCounts:
    """How often each id occurs in these words, without the special tokens at the texts' ends; shape [size].

    Words of equal count are segmented in one text, joined by spaces.
    """
    place = polars.int_range(polars.len()).over("count") // JOINED
    joined = words.with_columns(place.alias("place")).group_by("count", "place").agg(polars.col("word").str.join(" "))
    texts, weights = [*joined["word"], *whole], [*joined["count"], *whole.values()]
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), ENCODED):
        encodings = tokenizer.encode_batch_fast(texts[start : start + ENCODED], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        # Weights as float64 are exact below 2**53, far above any count of words.
        repeated = np.repeat(np.array(weights[start : start + ENCODED], dtype=np.float64), list(map(len, ids)))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, len(repeated))
        counts += np.bincount(flat, weights=repeated, minlength=size).astype(np.int64)
    return counts


def cuts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer is known never to look across a space between two safe characters."""
    parts, cutters = _parts(tokenizer.normalizer, "normalizers"), _parts(tokenizer.pre_tokenizer, "pretokenizers")
    added = tokenizer.get_added_tokens_decoder().values()
    if not all(_is_local(part) for part in parts) or any(token.normalized or " " in token.content for token in added):
        return False
    kinds = [cutter["type"] for cutter in cutters]
    if kinds == ["BertPreTokenizer"]:
        return True
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        return False
    return cutters[-1].get("prepend_scheme", "always") in ("always", "first") and cutters[-1].get("split", True)


def safe_characters(tokenizer: Tokenizer) -> str:
    """The characters next to which a text can be cut at a space, as the inside of a regular expression's set.

    Letters, digits, punctuation and symbols of Unicode's first plane that the normaliser turns into something without
    a space. Marks are excluded, as are the few letters that form one grapheme with what follows them.
    """
    ranges: list[list[int]] = []
    for code in range(0x21, 0x10000):
        if not _is_safe(chr(code), tokenizer.normalizer):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


def _is_safe(character: str, normalizer: Any) -> bool:
    if unicodedata.category(character)[0] not in "LNPS" or character in PREPENDED or character == METASPACE:
        return False
    after = normalizer.normalize_str(character) if normalizer else character
    loose = (each.isspace() or unicodedata.category(each)[0] in "MCZ" for each in after)
    return bool(after) and METASPACE not in after and not any(loose)


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] in SPACE_RUNS and normalizer["content"] in (" ", METASPACE)
    return normalizer["type"] in LOCAL_NORMALIZERS


def _parts(step: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokeniser, which may be a (nested) sequence of them, as in its file."""

    def flat(inner: dict[str, Any]) -> list[dict[str, Any]]:
        return [part for each in inner[name] for part in flat(each)] if inner["type"] == "Sequence" else [inner]

    return flat(json.loads(step.__getstate__())) if step else []
