"""Counting pieces over whole corpora by segmenting each distinct word once.

An XLM-R tokenizer cuts text at spaces before the model sees it, so a text's pieces are those of its words, and a
word's pieces can be multiplied by its count. Spaces are safe to cut at only between characters that neither the
normaliser nor Unicode's grapheme rules tie to a space; what remains is segmented as it stands.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JOINED = 256  # words in one text given to the tokenizer: fewer calls, and still enough texts for all cores
BATCH = 4096  # texts split together
LOCAL_NORMALIZERS = ("Precompiled", "Strip", "NFKC", "NFC", "Lowercase")
SPACE_RUNS = ({"Regex": " {2,}"}, {"Regex": " +"})
METASPACE = "▁"
Counts = npt.NDArray[np.int64]


class WordCounter:
    """Words of texts and how often they occur, ready to be turned into counts of pieces.

    Attributes:
        words: words (and whatever stands between two safe spaces), in any order of their texts.
        whole: starts and ends of texts, and texts that can't be cut; they are segmented one by one.
        texts: number of texts added.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.words: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.texts = 0
        self._literals = added_tokens(tokenizer)
        safe = safe_characters(tokenizer) if cuts_at_spaces(tokenizer) else ""
        self._cuttable = bool(safe)
        if safe:
            self._unsafe = re.compile(f"[^ {safe}]")
            self._safe_space = re.compile(f"(?<=[{safe}]) (?=[{safe}])")
            self._safe_edges = re.compile(f"[{safe}](.*[{safe}])?", re.DOTALL)

    def add(self, texts: Iterable[str]) -> None:
        """Add texts (any number; they are read once)."""
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == BATCH:
                self._add_batch(batch)
                batch = []
        self._add_batch(batch)

    def _add_batch(self, texts: list[str]) -> None:
        self.texts += len(texts)
        plain = []
        for text in texts:
            if self._is_plain(text):
                plain.append(text)
            elif text:
                self._add_careful(text)
        if plain:
            self.words.update(" ".join(plain).split(" "))

    def _is_plain(self, text: str) -> bool:
        """Whether every space of the text is safe to cut at."""
        if not text or not self._cuttable or text[0] == " " or text[-1] == " " or "  " in text:
            return False
        return not self._unsafe.search(text) and not self._has_literal(text)

    def _add_careful(self, text: str) -> None:
        if not self._cuttable or self._has_literal(text):
            self.whole[text] += 1
            return
        parts = self._safe_space.split(text)
        for part in {0: parts[0], len(parts) - 1: parts[-1]}.values():
            (self.words if self._safe_edges.fullmatch(part) else self.whole)[part] += 1
        self.words.update(parts[1:-1])

    def _has_literal(self, text: str) -> bool:
        return any(literal in text for literal in self._literals)


def piece_counts(tokenizer: "Tokenizer", words: Mapping[str, int], whole: Mapping[str, int], size: int) -> Counts:
    """How often each id occurs in these words, special tokens of the texts' ends left out; shape [size]."""
    counts = np.zeros(size, dtype=np.int64)
    texts, weights = [], []
    for weight, text in joined(words):
        texts.append(text)
        weights.append(weight)
    texts += whole.keys()
    weights += whole.values()
    for start in range(0, len(texts), BATCH):
        encodings = tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
        _add_weighted(counts, [encoding.ids for encoding in encodings], weights[start : start + BATCH])
    return counts


def joined(words: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """(count, words of this count joined by spaces), at most `JOINED` words each."""
    groups: dict[int, list[str]] = {}
    for word, count in words.items():
        groups.setdefault(count, []).append(word)
    for count, group in groups.items():
        for start in range(0, len(group), JOINED):
            yield count, " ".join(group[start : start + JOINED])


def end_tokens(tokenizer: "Tokenizer") -> list[int]:
    """Ids of the special tokens that each text gets, such as `<s>` and `</s>`."""
    return list(tokenizer.encode("").ids)


def added_tokens(tokenizer: "Tokenizer") -> list[str]:
    """Texts of the added tokens, which are cut out of a text before anything else."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def cuts_at_spaces(tokenizer: "Tokenizer") -> bool:
    """Whether the tokenizer is known never to look across a space between two safe characters."""
    import json

    document = json.loads(_without_model(tokenizer))
    parts = _parts(document["normalizer"], "normalizers")
    if not all(_is_local(part) for part in parts) or any(token["normalized"] for token in document["added_tokens"]):
        return False
    cutters = _parts(document["pre_tokenizer"], "pretokenizers")
    if [cutter["type"] for cutter in cutters] not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        return False
    return cutters[-1].get("prepend_scheme", "always") in ("always", "first") and cutters[-1].get("split", True)


def safe_characters(tokenizer: "Tokenizer") -> str:
    """The characters beside which a space can be cut at, as the inside of a regular expression's set.

    Letters, digits, punctuation and symbols of Unicode's first plane that the normaliser turns into something without
    a space. Marks, and the few letters that join what follows them into one grapheme, are not among them.
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
    return bool(after) and METASPACE not in after and not any(_is_loose(each) for each in after)


def _is_loose(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] in "MCZ"


PREPENDED = "\u0d4e"  # letters with Grapheme_Cluster_Break=Prepend; the others lie beyond the first plane


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] in SPACE_RUNS and normalizer["content"] in (" ", METASPACE)
    return normalizer["type"] in LOCAL_NORMALIZERS


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a (possibly nested) sequence."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step[name] for part in _parts(inner, name)]


def _without_model(tokenizer: "Tokenizer") -> str:
    """The tokenizer's description with an empty model, which is small."""
    from tokenizers import Tokenizer, models

    shell = Tokenizer(models.Unigram())
    if tokenizer.normalizer:
        shell.normalizer = tokenizer.normalizer
    shell.pre_tokenizer = tokenizer.pre_tokenizer
    shell.add_tokens(list(tokenizer.get_added_tokens_decoder().values()))
    return shell.to_str()


def _add_weighted(counts: Counts, ids: list[list[int]], weights: list[int]) -> None:
    lengths = [len(each) for each in ids]
    flat = np.fromiter((token for each in ids for token in each), dtype=np.int64, count=sum(lengths))
    # Weights as float64 are exact below 2**53, far above any count of words.
    repeated = np.repeat(np.array(weights, dtype=np.float64), lengths)
    counts += np.bincount(flat, weights=repeated, minlength=len(counts)).astype(np.int64)
