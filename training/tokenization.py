"""Texts to token ids, once and ahead; and a slice of a global batch as mini-batches of texts of similar length."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.schema.training import SetConfig, SideConfig
from data.artefact import OWN_SIZE, Share
from data.pair_files import read_pairs
from pipeline.core.console import log
from training.batch_plan import GlobalBatch, Integers, SetRows

TOKENS = Features(
    {
        "anchor": List(Value("int32")),
        "positive": List(Value("int32")),
        "negatives": List(List(Value("int32"))),
        "score": Value("float32"),
    }
)
COLUMNS = ("anchor", "positive", "negatives")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What stands before a set's texts; symmetric sets have the query prompt on both sides."""

    anchor: str
    positive: str


@dataclasses.dataclass(frozen=True)
class TokenisedSet:
    """One set, ready to be planned and trained on."""

    rows: SetRows
    tokens: Dataset  # columns of TOKENS, on disk
    anchor_lengths: Integers
    positive_lengths: Integers
    negative_lengths: list[Integers]

    def tokens_of(self, batch: GlobalBatch) -> int:
        """All tokens of a batch, without padding."""
        pairs = self.anchor_lengths[batch.rows].sum() + self.positive_lengths[batch.rows].sum()
        negatives = (
            self.negative_lengths[row][chosen].sum()
            for row, chosen in zip(batch.rows.tolist(), batch.negatives, strict=True)
        )
        return int(pairs + sum(negatives)) if batch.negatives.shape[1] else int(pairs)


def tokenised_set(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    side: SideConfig,
    angle: bool,
    cache: Path,
    share: Share = OWN_SIZE,
) -> TokenisedSet:
    """Read and tokenise one set; the token ids are kept in `cache` and taken from there the next time."""
    name = path.stem
    own = side.sets.get(name, SetConfig())
    lengths = own.anchor_length or side.anchor_length, own.positive_length or side.positive_length
    table = read_pairs(path)

    def to_tokens(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        flat = [text for texts in batch["negatives"] for text in texts or []]
        ends = np.cumsum([len(texts or []) for texts in batch["negatives"]])[:-1]
        ids = _ids(tokenizer, prompts.positive, [*batch["positive"], *flat], lengths[1])
        negatives = np.array([*ids[len(batch["positive"]) :], None], dtype=object)[:-1]
        return {
            "anchor": _ids(tokenizer, prompts.anchor, batch["anchor"], lengths[0]),
            "positive": ids[: len(batch["positive"])],
            "negatives": [list(part) for part in np.split(negatives, ends)],
            "score": batch["score"],
        }

    log.info("%s: tokenising %d rows", name, len(table))
    cache.mkdir(parents=True, exist_ok=True)
    tokens = Dataset(table).map(
        to_tokens,
        batched=True,
        features=TOKENS,
        cache_file_name=str(cache / f"{name}.arrow"),
        new_fingerprint=f"tokens-{name}-{lengths[0]}-{lengths[1]}",
    )
    return _tokenised(table, tokens, side, own, name, angle, share)


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str, texts: list[str], length: int) -> list[list[int]]:
    if not texts:
        return []
    prompted = [prompt + text for text in texts] if prompt else texts
    return tokenizer(prompted, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]


def _tokenised(
    table: pa.Table, tokens: Dataset, side: SideConfig, own: SetConfig, name: str, angle: bool, share: Share
) -> TokenisedSet:
    arrow = tokens.data.table
    anchor_lengths, positive_lengths = (_lengths(arrow[column]) for column in COLUMNS[:2])
    negatives = arrow["negatives"].combine_chunks()
    flat_lengths = _lengths(negatives.flatten())
    ends = np.cumsum(_lengths(negatives))[:-1]
    negative_lengths = np.split(flat_lengths, ends)
    most = side.negatives if own.negatives is None else own.negatives
    longest = np.maximum(anchor_lengths, positive_lengths)
    if most:
        longest = np.maximum(longest, [part.max(initial=0) for part in negative_lengths])
    anchors, positives, texts = _identities(table)
    rows = SetRows(
        name=name,
        anchors=anchors,
        positives=positives,
        negatives=np.split(texts, ends),
        lengths=longest,
        scores=table["score"].to_numpy().astype(np.float32),
        most_negatives=most,
        weight=own.weight * share.weight,
        repeat=share.repeat,
        angle=angle,
    )
    return TokenisedSet(rows, tokens, anchor_lengths, positive_lengths, negative_lengths)


def _lengths(column: pa.Array | pa.ChunkedArray) -> Integers:
    return (
        column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        if isinstance(column, pa.Array)
        else np.concatenate([_lengths(chunk) for chunk in column.chunks] or [np.zeros(0, np.int64)])
    )


def _identities(table: pa.Table) -> tuple[Integers, Integers, Integers]:
    """Numbers for the texts of all columns, equal for equal texts: anchors, positives, negatives in a row."""
    columns = [table["anchor"], table["positive"], table["negatives"].combine_chunks().flatten()]
    sizes = [len(column) for column in columns]
    arrays = [array.cast(pa.large_string()) for column in columns for array in _arrays(column)]
    encoded = pa.chunked_array(arrays, pa.large_string()).combine_chunks().dictionary_encode()
    indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    anchors, positives, negatives = np.split(indices, np.cumsum(sizes)[:-1])
    return anchors, positives, negatives


def _arrays(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


class PlannedRows(torch.utils.data.Dataset[Any]):
    """The tokens of a slice of a global batch; the batch sampler's "indices" are the slices themselves."""

    def __init__(self, sets: Iterable[TokenisedSet], angle_weight: float) -> None:
        self.sets = {item.rows.name: item for item in sets}
        self.angle_weight = angle_weight

    def __len__(self) -> int:
        return sum(len(item.tokens) for item in self.sets.values())

    def __getitems__(self, batch: GlobalBatch) -> list[dict[str, Any]]:
        """One dict a row: `texts`, the token ids of anchor, positive and chosen negatives, and `score`."""
        item = self.sets[batch.set]
        rows = item.tokens[batch.rows.tolist()]
        weight = self.angle_weight if item.rows.angle else 0.0
        columns = rows["anchor"], rows["positive"], rows["negatives"], rows["score"], batch.negatives.tolist()
        return [
            {
                "texts": [anchor, positive, *(negatives[index] for index in chosen)],
                "score": float("nan") if score is None else score,
                "angle_weight": weight,
            }
            for anchor, positive, negatives, score, chosen in zip(*columns, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class MiniBatches:
    """Collates rows: their texts, each once, sorted by length and cut into mini-batches padded to their own width."""

    pad_id: int
    most_tokens: int  # padded tokens of a mini-batch; one longer text makes its own
    overhead: int  # what a further mini-batch costs, in tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        places: dict[tuple[int, ...], int] = {}
        positions = [[places.setdefault(tuple(text), len(places)) for text in row["texts"]] for row in rows]
        texts = list(places)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        lengths = np.array([len(texts[index]) for index in order])
        batch: dict[str, Any] = {}
        start = 0
        for number, end in enumerate(mini_batch_ends(lengths, self.most_tokens, self.overhead)):
            part = self._padded([texts[index] for index in order[start:end]])
            batch |= {f"text_{number}_{key}": value for key, value in part.items()}
            start = end
        rank_of = np.argsort(order)
        batch["label"] = {
            "position": torch.from_numpy(rank_of[np.array(positions)]),
            "score": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
            "angle_weight": rows[0]["angle_weight"],
        }
        return batch

    def _padded(self, texts: list[tuple[int, ...]]) -> dict[str, Tensor]:
        ids = np.full((len(texts), len(texts[-1])), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def mini_batch_ends(lengths: Integers, most_tokens: int, overhead: int) -> list[int]:
    """Where to cut texts sorted by rising length, so that padding plus `overhead` a mini-batch is least.

    Dynamic programming over the cuts: cost[j] = min over i of cost[i] + (j - i) * lengths[j - 1] + overhead, where
    (j - i) * lengths[j - 1] is at most `most_tokens`, or one text.
    """
    cost = np.zeros(len(lengths) + 1)
    cut = np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        width = lengths[end - 1]
        first = max(0, end - max(1, most_tokens // int(width)))
        candidates = cost[first:end] + np.arange(end - first, 0, -1) * width
        best = int(candidates.argmin())
        cost[end], cut[end] = candidates[best] + overhead, first + best
    ends = [len(lengths)]
    while cut[ends[-1]]:
        ends.append(int(cut[ends[-1]]))
    return ends[::-1]
