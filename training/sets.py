"""All sets of one side, read and tokenised once, before training."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from configs.schema.config import SIDES_READ
from configs.schema.training import HeadsConfig, PlannedConfig, SetConfig, SideConfig
from data.artefact import read_shares, set_files
from data.encoders import AuxiliaryModel
from data.pair_files import read_pairs
from pipeline.core.artefact import replacing
from pipeline.core.console import log, progress
from pipeline.core.embedding import Prompts, prompts_of, require_room
from pipeline.core.errors import UserError
from training.batch_plan import Integers, SetRows
from training.text_vectors import TextVectors, write_vectors

SMALL = 100  # sets with fewer rows share a line of the log
UNWEIGHTED = 1.0, 1  # weight and repeat of a set that no ledger lists
AT_ONCE = 8 * 2**20  # bytes of the texts per call of the tokenizer, which uses all cores


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Token ids of distinct texts, on disk, by the texts' numbers in `SetRows`."""

    ids: NDArray[np.int32]  # of all texts, concatenated
    ends: Integers  # (numbers + 1,) text n is ids[ends[n] : ends[n + 1]]

    @classmethod
    def read(cls, file: Path, ends: Integers) -> "TokenIds":
        """The ids that a file holds; a truncated one is an error, by its shape."""
        return cls(np.memmap(file, np.int32, mode="r", shape=(int(ends[-1]),)), ends)

    def __getitem__(self, number: int) -> list[int]:
        return self.ids[self.ends[number] : self.ends[number + 1]].tolist()

    @cached_property
    def lengths(self) -> Integers:
        """(numbers,) tokens; 0 for a text that is only in other columns of the set."""
        return np.diff(self.ends)


@dataclasses.dataclass(frozen=True)
class TokenisedSet:
    """One set, ready to be planned and trained on."""

    rows: SetRows
    anchors: TokenIds
    passages: TokenIds  # positives and negatives
    others: dict[str, TextVectors] = dataclasses.field(default_factory=dict)  # by role: guide, teacher

    def __len__(self) -> int:
        return len(self.rows.anchors)


@dataclasses.dataclass(frozen=True)
class PreparedSets:
    """A run's tokenised sets: training sets, and dev sets for their loss."""

    train: dict[str, TokenisedSet]
    dev: dict[str, TokenisedSet]


def prepare_sets(
    name: str,
    side: SideConfig | HeadsConfig,
    model: SentenceTransformer,
    data: Path,
    cache: Path,
    others: Mapping[str, Callable[[], AuxiliaryModel]] = MappingProxyType({}),
) -> PreparedSets:
    """The sets of the side `name`: tokens, and the vectors of the `others` by role, computed unless `cache` has them.

    Raises UserError where there are no sets, the config names unknown ones, or a prompt leaves no room for texts.
    """
    wanted = _wanted_sets(name, side, data)
    prepared, shares, tokenizer = PreparedSets({}, {}), read_shares(data), model.tokenizer
    new = [path.stem for _, path in wanted if not (cache / f"train/{path.stem}.npz").is_file()]
    for data_side, path in wanted:
        prompts = prompts_of(model, data_side)
        for prompt, length in zip(prompts, side.limits_of(path.stem)[:2], strict=True):
            require_room(model, [prompt], length, f"config key training.{name}, set {path.stem}")
        angle = data_side == "symmetric" and side.angle_weight > 0
        share = shares.get(path.stem, UNWEIGHTED)
        train = tokenised_set(path, tokenizer, prompts, side, angle, cache / "train", share)
        prepared.train[path.stem] = with_vectors(train, path, data_side, side, cache / "train", others)
        dev = data / "dev" / path.name
        if dev.is_file():
            tokens = tokenised_set(dev, tokenizer, prompts, side, angle, cache / "dev")
            prepared.dev[path.stem] = with_vectors(tokens, dev, data_side, side, cache / "dev", others)
        if path.stem in new and len(train) >= SMALL:
            held_out = f" and {len(prepared.dev[path.stem]):,} dev rows" if dev.is_file() else ""
            log.info("%s: %s rows%s tokenised", path.stem, f"{len(train):,}", held_out)
    if small := sum(len(prepared.train[name]) < SMALL for name in new):
        log.info("%d set%s under %d rows tokenised", small, "s" * (small > 1), SMALL)
    return prepared


def _wanted_sets(name: str, side: PlannedConfig, data: Path) -> list[tuple[str, Path]]:
    """The data side and file of each set that the side `name` trains on."""
    found = set_files(data, *SIDES_READ[name])
    for unknown in side.sets.keys() - {path.stem for _, path in found}:
        what, where = f"no set of this side is called {unknown}", f"config key training.{name}.sets.{unknown}"
        remedy = f"choose among {', '.join(path.stem for _, path in found) or 'the sets of data.sources'}"
        raise UserError(what, where=where, remedy=remedy)
    wanted = [
        (data_side, path) for data_side, path in found if path.stem not in side.sets or side.sets[path.stem].weight > 0
    ]
    if not wanted:
        where, remedy = f"{data}/{'/, '.join(SIDES_READ[name])}", "add sources of this side to data"
        raise UserError("there are no pairs to train on", where=where, remedy=remedy)
    return wanted


def tokenised_set(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    side: PlannedConfig,
    angle: bool,
    cache: Path,
    share: tuple[float, int] = UNWEIGHTED,
) -> TokenisedSet:
    """One set with each distinct text tokenised once; the tokens are kept in `cache` and read there the next time."""
    name, record = path.stem, cache / f"{path.stem}.npz"
    if not record.is_file():
        _write_tokens(path, tokenizer, prompts, side, cache)
    with np.load(record) as file:
        columns = dict(file)
    passages = TokenIds.read(cache / f"{name}.passages", columns["passages_ends"])
    has_anchors = "anchors_ends" in columns  # otherwise they are stored with the passages
    anchors = TokenIds.read(cache / f"{name}.anchors", columns["anchors_ends"]) if has_anchors else passages
    own, (_, _, most), (weight, repeat) = side.sets.get(name, SetConfig()), side.limits_of(name), share
    longest = np.maximum(anchors.lengths[columns["anchors"]], passages.lengths[columns["positives"]])
    if most:
        of_row = np.repeat(np.arange(len(longest)), columns["counts"])
        np.maximum.at(longest, of_row, passages.lengths[columns["negatives"]])
    rows = SetRows(
        name=name,
        anchors=columns["anchors"],
        positives=columns["positives"],
        negatives=np.split(columns["negatives"], np.cumsum(columns["counts"])[:-1]),
        lengths=longest,
        scores=columns["scores"],
        max_negatives=most,
        weight=own.weight * weight,
        repeat=repeat,
        angle=angle,
    )
    return TokenisedSet(rows, anchors, passages)


def _write_tokens(
    path: Path, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, side: PlannedConfig, cache: Path
) -> None:
    """Write the set's tokens by role, then its columns and the ends of its texts, into `cache`.

    Where prompt and length are the same, anchors are stored with the passages.
    """
    name, (texts, columns) = path.stem, _numbered(read_pairs(path))
    anchor_length, positive_length, _ = side.limits_of(name)
    anchors, passages = (prompts.anchor, anchor_length), (prompts.positive, positive_length)
    asked = columns["positives"], columns["negatives"], columns["anchors"]
    roles = {"passages": (passages, asked[:2]), "anchors": (anchors, asked[2:])}
    if anchors == passages:
        roles = {"passages": (passages, asked)}
    cache.mkdir(parents=True, exist_ok=True)
    for role, ((prompt, length), numbers) in roles.items():
        wanted = np.unique(np.concatenate(numbers))
        columns[f"{role}_ends"] = _tokenise(texts, wanted, tokenizer, prompt, length, cache / f"{name}.{role}")
    with replacing(cache / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)


def with_vectors(
    item: TokenisedSet,
    pairs: Path,
    data_side: str,
    side: PlannedConfig,
    cache: Path,
    others: Mapping[str, Callable[[], AuxiliaryModel]],
) -> TokenisedSet:
    """The set with the `others`' vectors of its texts, cut at the same length in the other model's tokens."""
    name, found = item.rows.name, {}
    for role, other in others.items():
        file = cache / f"{name}.{role}.npy"
        if not file.is_file():
            texts, _ = _numbered(read_pairs(pairs))
            write_vectors(file, other(), texts, item.rows, data_side, max(side.limits_of(name)[:2]))
        found[role] = TextVectors.read(file, item.rows)
    return dataclasses.replace(item, others=found)


def _numbered(table: pa.Table) -> tuple[pa.Array, dict[str, Any]]:
    """The distinct texts of all columns, and the columns: numbers of texts, counts of negatives, and scores."""
    negatives, counts = pc.list_flatten(table["negatives"]), pc.list_value_length(table["negatives"])
    texts = {"anchors": table["anchor"], "positives": table["positive"], "negatives": negatives}
    chunks = [chunk for column in texts.values() for chunk in column.cast(pa.large_string()).chunks]
    encoded = pa.chunked_array(chunks, pa.large_string()).dictionary_encode().chunks  # large: may exceed 2 GiB
    numbers = np.concatenate([chunk.indices.to_numpy() for chunk in encoded]).astype(np.int64)
    parts = np.split(numbers, np.cumsum([len(column) for column in texts.values()])[:-1])
    columns: dict[str, Any] = dict(zip(texts, parts, strict=True))
    columns["counts"] = pc.fill_null(counts, 0).to_numpy().astype(np.int64)
    columns["scores"] = table["score"].to_numpy().astype(np.float32)
    return encoded[-1].dictionary, columns


def _tokenise(
    texts: pa.Array, wanted: Integers, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, path: Path
) -> Integers:
    """Write the token ids of the texts with the `wanted` numbers, in ascending order; returns `TokenIds.ends`."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    call = pc.binary_length(texts).to_numpy()[wanted].cumsum() // AT_ONCE
    parts = np.split(wanted, np.flatnonzero(np.diff(call)) + 1)
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in progress(parts, f"tokenising {path.name}") if len(parts) > 1 else parts:
            prompted = [prompt + text for text in texts.take(pa.array(part)).to_pylist()]
            ids = tokenizer(prompted, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
            lengths[part] = [len(text) for text in ids]
            np.fromiter(chain.from_iterable(ids), np.int32).tofile(file)
    return np.concatenate([[0], np.cumsum(lengths)])
