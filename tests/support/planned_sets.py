"""Small sets in the data artefact's layout, and finished data and init artefacts around them."""

import copy
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from configs.schema.config import Config
from configs.schema.training import AdapterConfig, SideConfig, TrainingConfig
from pipeline.core.artefact import Manifest
from pipeline.core.embedding import Prompts
from tests.support.small_bases import TINY, config, tiny_base
from training.batch_plan import GlobalBatch
from training.batches import MiniBatchCollator, PlannedDataset
from training.losses import PlannedLoss
from training.memory import Budget
from training.model_files import load_model
from training.sets import TokenisedSet, tokenised_set
from training.text_vectors import TextVectors

SCHEMA = pa.schema(
    [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string())), ("score", pa.float32())]
)
WORDS = ("река", "город", "зима", "музей", "книга", "поезд", "море", "хлеб", "школа", "лес", "дождь", "гора", "письмо")


def rows(number: int, seed: int = 0, negatives: int = 0, scored: bool = False) -> list[dict[str, Any]]:
    """Rows of random words, of different lengths, no text twice."""
    random = np.random.default_rng(seed)
    texts = (f"{' '.join(random.choice(WORDS, random.integers(2, 12)))} {index}" for index in range(10**6))
    return [
        {
            "anchor": next(texts),
            "positive": next(texts),
            "negatives": [next(texts) for _ in range(negatives)],
            "score": float(random.choice([0.0, 0.5, 1.0])) if scored else None,
        }
        for _ in range(number)
    ]


def write_set(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content, SCHEMA), path)
    return path


def prepared_run(folder: Path, sets: dict[str, list[dict[str, Any]]], **side: Any) -> Config:
    """A run whose data and init stages are complete; `sets` maps `<side or dev>/<set>` to rows."""
    made = config(folder, TINY, precision="fp32")
    values = {"batch_size": 16, "anchor_length": 32, "positive_length": 32, "learning_rate": 1e-3, **side}
    if isinstance(values.get("adapter"), dict):  # from the command line of a test process
        values["adapter"] = AdapterConfig(**values["adapter"])
    made.training = TrainingConfig(SideConfig(**values), SideConfig(**values), SideConfig(**values))
    for name, content in sets.items():
        write_set(made.folder("data") / f"{name}.parquet", content)
    if sets:  # else the run is prepared already
        shutil.copytree(tiny_base(), made.folder("init"), dirs_exist_ok=True)
        for stage in ("data", "init"):
            made.folder(stage).mkdir(parents=True, exist_ok=True)
            Manifest(stage, "complete", f"{stage} of a test", {}, {}).write(made.folder(stage))
    return made


def tokenised(
    folder: Path, content: list[dict[str, Any]], angle: bool = False, tokenizer: Any = None, **side: Any
) -> TokenisedSet:
    """A tokenised set of these rows, by default in the tiny base's tokens."""
    path = write_set(folder / "set.parquet", content)
    settings = SideConfig(**{"anchor_length": 32, "positive_length": 32, "negatives": 1, **side})
    return tokenised_set(path, tokenizer or _loaded(0.0).tokenizer, Prompts("", ""), settings, angle, folder / "tokens")


def random_vectors(item: TokenisedSet, width: int = 12, seed: int = 3) -> TextVectors:
    """Random numbers in place of another model's vectors of the set's texts."""
    texts = 1 + max(
        numbers.max(initial=0) for numbers in (item.rows.anchors, item.rows.positives, *item.rows.negatives)
    )
    vectors = np.random.default_rng(seed).standard_normal((2 * texts, width), np.float32)
    return TextVectors(np.arange(2 * texts), int(texts), vectors)


@functools.cache
def _loaded(dropout: float) -> SentenceTransformer:
    return load_model(tiny_base(), "auto", SideConfig(anchor_length=32, positive_length=32, dropout=dropout))


def tiny_model(dropout: float = 0.0) -> SentenceTransformer:
    """The tiny base in training mode: a copy of one that is loaded once per process."""
    return copy.deepcopy(_loaded(dropout)).train()


def planned_loss(model: torch.nn.Module, budget: int, **settings: Any) -> PlannedLoss:
    """The loss with the given mini-batch budget in tokens."""
    return PlannedLoss(model, SideConfig(**{"temperature": 0.05, **settings}), budget)


def features_of(
    item: TokenisedSet, batch: GlobalBatch, budget: int, angle_weight: float
) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """Model inputs and labels of a batch, as the trainer hands them to the loss."""
    collated = MiniBatchCollator(1, Budget(budget, overhead=8))(
        PlannedDataset([item], angle_weight).__getitems__(batch)
    )
    return list(_parts(collated)), collated["label"]


def _parts(collated: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    number = 0
    while f"text_{number}_input_ids" in collated:
        yield {key: collated[f"text_{number}_{key}"] for key in ("input_ids", "attention_mask")}
        number += 1


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All gradients in one float64 vector."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """|first - second| / |first|."""
    return float((first - second).norm() / first.norm())
