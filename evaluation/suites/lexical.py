"""BM25 over words, the search without a model that every other one has to beat: bm25s with Snowball's stems."""

import logging
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import bm25s
import numpy as np
import Stemmer

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG itself when it is imported


def lexical_scores(queries: Sequence[str], candidates: Sequence[str], languages: Sequence[str]) -> np.ndarray:
    """BM25 (Lucene's, k1 1.5, b 0.75) of all queries and candidates [queries, candidates], float32.

    Zero where no candidate has a word, of which bm25s can make no index.
    """
    plain = {"stopwords": None, "return_ids": False, "show_progress": False}
    words = partial(bm25s.tokenize, token_pattern=r"\w+", stemmer=stemmer(languages), **plain)
    found = words(candidates)
    if not any(found):
        return np.zeros((len(queries), len(candidates)), np.float32)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(found, show_progress=False)
    return np.stack([index.get_scores_from_ids(index.get_tokens_ids(asked)) for asked in words(queries)])


def stemmer(languages: Sequence[str]) -> "Stemmer.Stemmer | None":
    """Snowball's for the first language that it knows; words in another script stay as they are."""
    for code in languages:
        try:
            return Stemmer.Stemmer(code)
        except KeyError:
            continue
    return None


def lexical_version() -> str:
    """Versions of the packages, on which scores depend."""
    return f"bm25s {version('bm25s')}, PyStemmer {version('PyStemmer')}"
