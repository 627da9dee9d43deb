"""All sets of one side: read, and tokenised once and ahead."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from filelock import FileLock
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from configs.schema.training import SetConfig, SideConfig
from data.artefact import OWN_SIZE, Share, set_files, shares
from data.pair_files import read_pairs
from pipeline.core.console import log
from pipeline.core.errors import UserError
from training.batch_plan import Integers, SetRows
from training.model_files import Prompts, prompts_of
from training.text_vectors import OtherModel, TextVectors

TOKENS = Features(
    {
        "anchor": List(Value("int32")),
        "positive": List(Value("int32")),
        "negatives": List(List(Value("int32"))),
        "score": Value("float32"),
    }
)
COLUMNS = ("anchor", "positive", "negatives")
SMALL = 100  # rows; sets below it share a line of the log


@dataclasses.dataclass(frozen=True)
class TokenisedSet:
    """One set, ready to be planned and trained on."""

    rows: SetRows
    tokens: Dataset  # columns of TOKENS, on disk
    anchor_lengths: Integers
    positive_lengths: Integers
    negative_lengths: list[Integers]
    others: dict[str, TextVectors] = dataclasses.field(default_factory=dict)  # by role: guide, teacher


@dataclasses.dataclass(frozen=True)
class PreparedSets:
    """What a run reads as tokens: training sets, and dev sets for their loss."""

    train: dict[str, TokenisedSet]
    dev: dict[str, TokenisedSet]


def prepare_sets(
    name: str,
    side: SideConfig,
    model: SentenceTransformer,
    data: Path,
    cache: Path,
    others: Mapping[str, OtherModel] = MappingProxyType({}),
) -> PreparedSets:
    """Tokenise the sets of the side `name`, and let the `others`, by role, embed their texts.

    Raises UserError where there are no sets, or the config names unknown ones.
    """
    datasets.disable_progress_bars()  # lines are logged instead: one a set, and one for all small ones
    found = set_files(data, name)
    for unknown in side.sets.keys() - {path.stem for _, path in found}:
        raise UserError(
            f"no set of this side is called {unknown}",
            where=f"config key training.{name}.sets.{unknown}",
            remedy=f"choose among {', '.join(path.stem for _, path in found) or 'the sets of data.sources'}",
        )
    wanted = [(of, path) for of, path in found if path.stem not in side.sets or side.sets[path.stem].weight > 0]
    if not wanted:
        raise UserError(
            "there are no pairs to train on", where=f"{data}/{name}", remedy="add sources of this side to data"
        )
    prepared, share, tokenizer = PreparedSets({}, {}), shares(data), model.tokenizer
    for of, path in wanted:
        prompts = prompts_of(model, of)
        angle = of == "symmetric" and side.angle_weight > 0
        train = tokenised_set(path, tokenizer, prompts, side, angle, cache / "train", share.get(path.stem, OWN_SIZE))
        prepared.train[path.stem] = _with_vectors(train, path, of, side, cache / "train", others)
        dev = data / "dev" / path.name
        if dev.is_file():
            tokens = tokenised_set(dev, tokenizer, prompts, side, angle, cache / "dev")
            prepared.dev[path.stem] = _with_vectors(tokens, dev, of, side, cache / "dev", others)
        if (rows := len(train.tokens)) >= SMALL:
            held_out = f" and {len(prepared.dev[path.stem].tokens):,} dev rows" if dev.is_file() else ""
            log.info("%s: %s rows%s tokenised", path.stem, f"{rows:,}", held_out)
    if small := sum(len(one.tokens) < SMALL for one in prepared.train.values()):
        log.info("%d set%s under %d rows tokenised", small, "s" * (small > 1), SMALL)
    return prepared


def tokenised_set(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    side: SideConfig,
    angle: bool,
    cache: Path,
    share: Share = OWN_SIZE,
) -> TokenisedSet:
    """Read and tokenise one set; the token ids are kept in `cache` and taken from there the next time.

    Of several ranks one tokenises. The others wait for its lock, for which there is no limit of time, as there is for
    the operations of their group.
    """
    name = path.stem
    own, lengths = side.sets.get(name, SetConfig()), _most_tokens(side, name)
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

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        tokens = Dataset(table).map(
            to_tokens,
            batched=True,
            features=TOKENS,
            cache_file_name=str(cache / f"{name}.arrow"),
            new_fingerprint=f"tokens-{name}-{lengths[0]}-{lengths[1]}",
        )
    return _tokenised(table, tokens, side, own, name, angle, share)


def _most_tokens(side: SideConfig, name: str) -> tuple[int, int]:
    """Of a set's anchors, and of its positives and negatives."""
    own = side.sets.get(name, SetConfig())
    return own.anchor_length or side.anchor_length, own.positive_length or side.positive_length


def _with_vectors(
    item: TokenisedSet, pairs: Path, of: str, side: SideConfig, cache: Path, others: Mapping[str, OtherModel]
) -> TokenisedSet:
    """The set with the `others`' vectors of its texts, which are cut at the same number of the other's tokens."""
    name = item.rows.name
    length = max(_most_tokens(side, name))
    found = {
        role: one.vectors(pairs, item.rows, of, length, cache / f"{name}.{role}.npy") for role, one in others.items()
    }
    return dataclasses.replace(item, others=found)


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str, texts: list[str], length: int) -> list[list[int]]:
    if not texts:
        return []
    distinct = list(dict.fromkeys(texts))  # mined sets repeat a positive for each of its negatives
    prompted = [prompt + text for text in distinct] if prompt else distinct
    found = tokenizer(prompted, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
    ids = dict(zip(distinct, found, strict=True))
    return [ids[text] for text in texts]


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
