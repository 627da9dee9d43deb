"""The certificate: what was checked, and what the shrunk model guarantees."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.console import progress
from training.vocabulary.comparison import DROPPED, Agreement, Comparison, Ids
from training.vocabulary.corpora import Corpus, text_lines
from training.vocabulary.counting import Counts
from training.vocabulary.hidden_states import compare_hidden_states
from training.vocabulary.selection import Selection
from training.vocabulary.shrinking import Sizes
from training.vocabulary.tokenizer_file import TokenizerFile

GUARANTEE = (
    "A text is segmented by the shrunk tokenizer exactly as by the original one if and only if the original uses "
    "kept pieces only. Its ids are then the original's, renumbered as vocabulary/id_map.parquet says; its embedding "
    "rows are bitwise copies; and at equal batch shape, precision and kernels its hidden states and its dense and "
    "multi-vector outputs are the original's bit by bit, its sparse output after renumbering. This holds because "
    "scores, normaliser, pre-tokeniser and special tokens are unchanged, ids keep their order, and a piece with the "
    "minimum score is kept, on which the score of unknown characters depends. Other texts fall apart into kept "
    "pieces, or <unk>."
)


def certify(
    corpora: list[Corpus],
    further: list[Path],
    comparison: Comparison,
    most: int | None,
    texts: Mapping[str, int],
    examples: int,
) -> dict[str, Agreement]:
    """Compare the segmentations of every corpus (an even sample of at most `most` of its texts) and of further files.

    Raises:
        RuntimeError: a covered text is segmented in another way, which the theorem rules out.
    """
    found = {}
    for corpus in progress(corpora, "comparing segmentations", total=len(corpora)):
        step = 1 if most is None else -(-texts[corpus.name] // most)
        found[corpus.name] = comparison.agreement(_every(corpus, step), examples)
    for path in further:
        found[str(path)] = comparison.agreement(line for lines in text_lines(path) for line in lines)
    for name, agreement in found.items():
        if agreement.mismatches:
            raise RuntimeError(f"{agreement.mismatches} covered texts of {name} are segmented in another way")
    return found


def successors(kept: Ids, size: int) -> Ids:
    """New id of each old one, or `DROPPED`; shape [size]."""
    new_ids = np.full(size, DROPPED, dtype=np.int64)
    new_ids[kept] = np.arange(len(kept))
    return new_ids


def language_shares(occurrences: Mapping[str, Counts], kept: Ids) -> dict[str, dict[str, Any]]:
    """For each language: its pieces, how many of them stay, and their share of all occurrences."""
    return {
        language: {
            "pieces": int((count > 0).sum()),
            "pieces_kept": int((count[kept] > 0).sum()),
            "occurrences": int(count.sum()),
            "occurrences_kept": float(count[kept].sum() / max(count.sum(), 1)),
        }
        for language, count in occurrences.items()
    }


def certificate(
    tokenizer: TokenizerFile,
    selection: Selection,
    sizes: Sizes,
    languages: dict[str, dict[str, Any]],
    agreements: Mapping[str, Agreement],
    corpora: list[Corpus],
    texts: Mapping[str, int],
) -> dict[str, Any]:
    """All but the hidden states, as it is written to `certificate.json`."""
    sources = {corpus.name: corpus.source for corpus in corpora}
    checked = {
        name: {
            "source": sources.get(name, "local file"),
            "texts": texts.get(name, agreement.texts),
            "compared": agreement.texts,
            "covered": agreement.covered,
            "coverage": agreement.coverage,
            "mismatches": agreement.mismatches,
            "pieces_before": agreement.pieces_before,
            "pieces_after": agreement.pieces_after,
            "unknown_characters_before": agreement.unknown_characters_before,
            "unknown_characters_after": agreement.unknown_characters_after,
        }
        for name, agreement in agreements.items()
    }
    return {
        "guarantee": GUARANTEE,
        **dataclasses.asdict(sizes),
        "pinned": {
            "piece": tokenizer.piece(selection.pinned),
            "score": float(tokenizer.scores[selection.pinned]),
            "old_id": selection.pinned,
            "new_id": int(np.searchsorted(selection.kept, selection.pinned)),
        },
        "kept_by_reason": selection.reasons,
        "languages": languages,
        "checked": checked,
    }


def hidden_state_part(
    base: Path, shrunk: Path, agreements: Mapping[str, Agreement], texts: int, max_length: int
) -> dict[str, Any] | None:
    """The comparison of hidden states on covered texts of the corpora; None where none are asked for or covered.

    Raises:
        RuntimeError: hidden states differ.
    """
    examples = [text for agreement in agreements.values() for text in agreement.examples][:texts]
    if not examples:
        return None
    found = compare_hidden_states(base, shrunk, examples, max_length)
    if not found["bitwise_equal"]:
        raise RuntimeError(f"hidden states of covered texts differ by up to {found['largest_difference']}")
    return found


def _every(corpus: Corpus, step: int) -> Iterator[str]:
    place = 0
    for _language, batch in corpus.texts():
        yield from batch[-place % step :: step]
        place += len(batch)
