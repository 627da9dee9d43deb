"""The certificate: what was checked, and what the shrunk model guarantees."""

import dataclasses
import gc
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from configs.schema.config import Config
from configs.schema.init import InitConfig
from pipeline.core.artefact import read_json
from pipeline.core.console import quiet
from pipeline.core.model_folder import read_tokenizer
from pipeline.core.models import load_folder
from training.vocabulary.corpora import Corpus, certified_files, corpus_lines
from training.vocabulary.counting import LanguageCounts
from training.vocabulary.selection import OTHER, Selection
from training.vocabulary.shrinking import Sizes
from training.vocabulary.tokenizer_file import BPE, UNIGRAM, WORD_PIECE, Ids, TokenizerFile

TEXTS = 4096  # segmented together
DROPPED = -1  # where an id has no successor
LONGEST = 128  # tokens of a text whose hidden states are compared, where the model takes as many
BATCH = 16  # texts whose hidden states are compared together
CHECKED = (  # figures of a corpus, or of a further file
    *("compared", "covered", "coverage", "mismatches", "pieces_before", "pieces_after"),
    *("unknown_characters_before", "unknown_characters_after"),
)

GUARANTEE = (
    "A text is segmented by the shrunk tokenizer exactly as by the original one {when}. Its ids are then the "
    "original's, renumbered by vocabulary/id_map.parquet; its embedding rows are bitwise copies; and at equal batch "
    "shape, precision and kernels its hidden states and its dense and multi-vector outputs are the original's bit for "
    "bit, its sparse output after renumbering. This holds because normaliser, pre-tokeniser and special tokens are "
    "unchanged, ids keep their order, and {why}. Other texts are split into kept pieces or what the tokenizer has for "
    "unknown characters."
)
KEPT_ONLY = "if and only if the original uses kept pieces only"
OF_KIND = {  # kind of tokenizer -> when a text is segmented as before, and why
    UNIGRAM: (
        KEPT_ONLY,
        "a piece's score doesn't change; a piece with the minimum score is kept, on which that of unknown characters "
        "depends",
    ),
    WORD_PIECE: (
        "if the original uses kept pieces only, and not the unknown one",
        "the longest piece with which a word, or its rest, begins is still the longest where it is kept",
    ),
    BPE: (
        KEPT_ONLY,
        "merges keep their order; those that lead to a kept piece are kept, and no other merge happens in such a text",
    ),
}


def certify(
    config: Config,
    base: Path,
    shrunk: Path,
    tokenizer: TokenizerFile,
    before: Tokenizer,
    corpora: list[Corpus],
    counts: LanguageCounts,
    selection: Selection,
    sizes: Sizes,
) -> dict[str, Any]:
    """Compare the base, with its tokenizer `before`, and the shrunk folder; returns the content of certificate.json.

    Raises RuntimeError where a covered text is segmented differently, or its hidden states differ.
    """
    after = read_tokenizer(shrunk / "tokenizer.json")
    new_ids, unknown = successors(selection.kept, tokenizer.size), tokenizer.unknown_id
    when, why = OF_KIND[tokenizer.kind]
    comparison = TokenizerComparison(before, after, new_ids, unknown, covers_unknown=tokenizer.kind != WORD_PIECE)
    agreements = compare_corpora(config.init, corpora, comparison, counts.texts)
    found = [text for agreement in agreements.values() for text in agreement.examples]
    examples, sources = found[: config.init.hidden_state_texts], {corpus.name: corpus.source for corpus in corpora}
    return {
        "guarantee": GUARANTEE.format(when=when, why=why),
        **dataclasses.asdict(sizes),
        **pinned_piece(tokenizer, selection.pinned, new_ids),
        "kept_by_reason": selection.reasons,
        "languages": language_shares(counts.occurrences, selection.kept),
        "other_scripts": language_shares({OTHER: counts.others}, selection.kept)[OTHER],
        "checked": {
            name: {
                "source": sources.get(name, "local file"),
                "texts": counts.texts.get(name, agreement.compared),
                **{figure: getattr(agreement, figure) for figure in CHECKED},
            }
            for name, agreement in agreements.items()
        },
        "hidden_states": compare_hidden_states(base, shrunk, examples, config.base.max_length),
    }


def pinned_piece(tokenizer: TokenizerFile, old_id: int | None, new_ids: Ids) -> dict[str, dict[str, Any]]:
    """The piece with the minimum score, as `pinned`; nothing where the tokenizer has no scores."""
    if old_id is None or tokenizer.scores is None:
        return {}
    score, new_id = float(tokenizer.scores[old_id]), int(new_ids[old_id])
    return {"pinned": {"piece": tokenizer.piece(old_id), "score": score, "old_id": old_id, "new_id": new_id}}


def successors(kept: Ids, size: int) -> Ids:
    """New id of each old one, or `DROPPED`; shape [size]."""
    new_ids = np.full(size, DROPPED, dtype=np.int64)
    new_ids[kept] = np.arange(len(kept))
    return new_ids


def language_shares(occurrences: Mapping[str, Ids], kept: Ids) -> dict[str, dict[str, Any]]:
    """For each language: its pieces, how many of them are kept, and their share of all occurrences."""
    return {
        language: {
            "pieces": int((count > 0).sum()),
            "pieces_kept": int((count[kept] > 0).sum()),
            "occurrences": int(count.sum()),
            "occurrences_kept": float(count[kept].sum() / max(count.sum(), 1)),
        }
        for language, count in occurrences.items()
    }


@dataclasses.dataclass
class Agreement:
    """How the two tokenizers agree on the texts of one corpus."""

    compared: int = 0  # texts
    covered: int = 0  # texts for which the guarantee holds
    mismatches: int = 0  # covered texts with other ids than the original's, renumbered: the guarantee says 0
    pieces_before: int = 0
    pieces_after: int = 0
    unknown_characters_before: int = 0
    unknown_characters_after: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)  # covered texts, for comparing hidden states

    @property
    def coverage(self) -> float:
        """Share of the texts that are covered."""
        return self.covered / max(self.compared, 1)


@dataclasses.dataclass(frozen=True)
class TokenizerComparison:
    """Compares texts segmented by the original and by the shrunk tokenizer, one by one."""

    before: Tokenizer
    after: Tokenizer
    new_ids: Ids  # (old ids,) an id's successor, or `DROPPED`
    unknown_id: int | None
    covers_unknown: bool = True  # whether the guarantee holds for texts with the unknown piece

    def agreement(self, texts: Iterable[str], examples: int = 0) -> Agreement:
        """Compare all texts and keep the first `examples` covered ones."""
        found, rest = Agreement(), iter(texts)
        while batch := list(islice(rest, TEXTS)):
            before, after = _ids(self.before, batch), _ids(self.after, batch)
            found.compared += len(batch)
            found.pieces_before += sum(map(len, before))
            found.pieces_after += sum(map(len, after))
            for text, old, new in zip(batch, before, after, strict=True):
                expected = self.new_ids[old]
                covered = bool((expected != DROPPED).all()) and (self.covers_unknown or self.unknown_id not in old)
                found.covered += covered
                found.mismatches += covered and not np.array_equal(expected, new)
                if covered and len(found.examples) < examples:
                    found.examples.append(text)
            found.unknown_characters_before += self._unknown_characters(self.before, batch, before)
            found.unknown_characters_after += self._unknown_characters(self.after, batch, after)
        return found

    def _unknown_characters(self, tokenizer: Tokenizer, texts: list[str], ids: list[Ids]) -> int:
        """Characters of the texts that became `<unk>` (one `<unk>` stands for a run of them)."""
        if self.unknown_id is None:
            return 0
        doubtful = [text for text, own in zip(texts, ids, strict=True) if self.unknown_id in own]
        return sum(
            end - start
            for encoding in tokenizer.encode_batch(doubtful, add_special_tokens=False)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self.unknown_id
        )


def _ids(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch_fast(texts)]


def compare_corpora(
    config: InitConfig, corpora: list[Corpus], comparison: TokenizerComparison, texts: Mapping[str, int]
) -> dict[str, Agreement]:
    """Compare every corpus (an even sample of its `texts`) and the further files that the config names.

    Raises RuntimeError: a covered text is segmented differently.
    """
    found, most = {}, config.certified_texts
    examples = -(-config.hidden_state_texts // len(corpora))
    for corpus in corpora:
        step = 1 if most is None else -(-texts[corpus.name] // most)
        batches = (batch.to_pylist() for _, batch in corpus.texts("comparing segmentations"))
        every = islice(chain.from_iterable(batches), 0, None, step)
        found[corpus.name] = comparison.agreement(every, examples)
    for path in certified_files(config):
        found[str(path)] = comparison.agreement(line for lines in corpus_lines(path) for line in lines)
    for name, agreement in found.items():
        if agreement.mismatches:
            raise RuntimeError(f"{agreement.mismatches} covered texts of {name} are segmented differently")
    return found


def compare_hidden_states(base: Path, shrunk: Path, texts: list[str], max_length: int) -> dict[str, Any] | None:
    """Last hidden states of both models in float32 on the CPU, in batches of equal shape; None without texts.

    Returns:
        texts, tokens, whether all numbers are bitwise equal, and the largest difference.

    Raises RuntimeError: hidden states differ.
    """
    if not texts:
        return None
    (before, tokens), (after, _) = (
        _hidden_states(folder, texts, min(LONGEST, max_length)) for folder in (base, shrunk)
    )
    same = all(map(torch.equal, before, after))
    largest = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    if not same:
        raise RuntimeError(f"hidden states of covered texts differ by up to {largest}")
    return {"texts": len(texts), "tokens": tokens, "bitwise_equal": same, "largest_difference": largest}


def _hidden_states(folder: Path, texts: list[str], length: int) -> tuple[list[torch.Tensor], int]:
    """(texts, tokens, width) of each batch, and the number of tokens that are not padding."""
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    tokenizer.enable_truncation(length)
    padding = read_json(folder / "tokenizer_config.json")["pad_token"]
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    with quiet():
        model: Any = load_folder(folder, "cpu", finite=False)[0].model
    states, tokens = [], 0
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            encodings = tokenizer.encode_batch(texts[start : start + BATCH])
            ids = torch.tensor([encoding.ids for encoding in encodings])
            mask = torch.tensor([encoding.attention_mask for encoding in encodings])
            states.append(model(input_ids=ids, attention_mask=mask).last_hidden_state)
            tokens += int(mask.sum())
    del model
    gc.collect()
    return states, tokens
