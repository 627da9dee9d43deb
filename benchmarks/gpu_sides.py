"""What `benchmarks.gpu` runs in fresh processes: our trainer and encoder, sentence-transformers', and the bare step.

Every function returns figures of its steps after the warm-up: pairs (or texts) per second, TFLOP/s on the texts without
padding, the GPU's peak memory in GB, and the last loss.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import TrainerCallback

from configs.schema.init import BaseConfig
from pipeline.core.console import quiet
from pipeline.core.device import training_precision
from pipeline.core.machine import peak_memory
from training.bases.synthetic import write_base, write_rows
from training.cost_model import Shape, activation_bytes, measured_teraflops, shape_of, training_flops

TEMPERATURE, LENGTH = 0.02, 512
# Tokens of a row's texts, like the card's sets (configs/source), and the share of such rows; texts vary around them.
KINDS: dict[str, list[tuple[tuple[int, ...], float]]] = {
    "asymmetric": [((11, 112, 112), 0.62), ((14, 300, 300), 0.25), ((14, 50, 50), 0.08), ((12, 512, 512), 0.05)],
    "symmetric": [((18, 18), 0.6), ((8, 8), 0.25), ((30, 20), 0.15)],
}


@dataclasses.dataclass(frozen=True)
class Measures:
    """The sizes of one run of the benchmark."""

    shape: Shape
    batch: int
    warm: int  # steps before the clock starts
    steps: int


SHAPES = {
    "gpu": Measures(Shape(24, 1024, 4096, 46_166, 8194, 16), 256, 4, 12),
    "small": Measures(Shape(2, 32, 128, 500, 8194, 4), 8, 1, 2),
}


class Clock(TrainerCallback):
    """Times a trainer's steps after the warm-up."""

    def __init__(self, measures: Measures) -> None:
        self.measures, self.started = measures, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.measures.warm, self.measures.warm + self.measures.steps):
            wait()
            self.seconds, self.started = time.perf_counter() - self.started, time.perf_counter()


def wait() -> None:
    """Wait until the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_inputs(folder: Path, shape: str) -> Path:
    """Write the random base and, for each kind, twice as many rows as the steps take."""
    measures, random = SHAPES[shape], np.random.default_rng(0)
    base = folder / "base"
    write_base(base, measures.shape, BaseConfig(max_length=8192))
    for kind, sizes in KINDS.items():
        lengths, shares = zip(*sizes, strict=True)
        chosen = random.choice(len(lengths), 2 * measures.batch * (measures.warm + measures.steps), p=shares)
        rows = [lengths[index] for index in chosen]
        write_rows(folder / kind / kind / "pairs.parquet", rows, LENGTH, measures.shape)
    return base


def _operations(base: str, lengths: Any) -> float:
    """Operations of a training step on texts of these lengths, without padding."""
    lengths = np.asarray(lengths, dtype=np.float64)
    mean_square = float((lengths**2).sum() / lengths.sum())
    return training_flops(shape_of(Path(base)), int(lengths.sum()), mean_square, passes=3)


def _figures(pairs: float, operations: float, seconds: float, loss: float) -> dict[str, float]:
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
    rates = {"per_second": pairs / seconds, "teraflops": operations / seconds / 1e12}
    return {**rates, "gigabytes": used / 1e9, "loss": loss}


@quiet()
def train_ours(base: str, data: str, shape: str, packed: bool = False, compiled: bool = False) -> dict[str, float]:
    """Our trainer, with packed or padded texts; packed and not compiled is what `base.attention=auto` does."""
    from configs.schema.config import Config
    from configs.schema.training import SideConfig, TrainingConfig
    from pipeline.core.artefact import StageFolder
    from pipeline.core.device import PACKED
    from pipeline.core.packed import use_packed
    from training.batch_plan import BatchPlan, plan_batches
    from training.batches import text_lengths
    from training.finetune import make_trainer
    from training.model_files import choose_attention, load_model
    from training.sets import prepare_sets

    measures, kind = SHAPES[shape], Path(data).name
    side = SideConfig(
        batch_size=measures.batch, checkpoint_steps=10**6, temperature=TEMPERATURE, logging_steps=measures.steps // 2
    )
    config = Config(profile="bench", run="bench", training=TrainingConfig(side, side, side))
    bfloat16 = training_precision("auto") == "bf16"
    with TemporaryDirectory() as cache:
        model = load_model(Path(base), "sdpa", side)
        if packed and torch.cuda.is_available():
            choose_attention(model, BaseConfig(attention=PACKED, compile=compiled), bfloat16, 0.0)
        elif packed:
            use_packed(model)
        sets = prepare_sets(kind, side, model, Path(data), Path(cache) / "tokens")
        plan = plan_batches([item.rows for item in sets.train.values()], side, config.seed)
        plan = BatchPlan(plan.batches[: measures.warm + measures.steps], plan.left_out)
        stage = StageFolder(kind, Path(cache), "bench", {})
        trainer = make_trainer(config, stage, model, sets, plan)
        trainer.args.save_strategy = "no"
        clock = Clock(measures)
        trainer.add_callback(clock)
        trainer.train()
    counted = plan.batches[measures.warm :]
    (item,) = sets.train.values()
    operations = sum(_operations(base, text_lengths(item, batch)) for batch in counted)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return _figures(sum(len(batch.rows) for batch in counted), operations, clock.seconds, losses[-1])


def _texts(data: str) -> Iterator[list[str]]:
    """Anchor, positive and, on the asymmetric side, the negative of each row."""
    for entry in pq.read_table(next(Path(data).rglob("pairs.parquet"))).to_pylist():
        yield [entry["anchor"], entry["positive"], *entry["negatives"]]


@quiet()
def train_sentence_transformers(base: str, data: str, shape: str) -> dict[str, float]:
    """The library's trainer with its cached loss, set up as documented; short pairs with its plain loss.

    It flattens texts with flash-attn where that is installed; otherwise attention is SDPA.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from benchmarks.training_sides import library_trainer

    measures, half = SHAPES[shape], training_precision("auto") == "bf16"
    steps = measures.warm + measures.steps
    rows = list(_texts(data))
    columns = dict(zip(("anchor", "positive", "negative"), zip(*rows, strict=True), strict=False))
    flattens = half and torch.cuda.is_available() and find_spec("flash_attn")
    attention = {"attn_implementation": "flash_attention_2"} if flattens else {}
    model = SentenceTransformer(base, device="cuda" if torch.cuda.is_available() else "cpu", model_kwargs=attention)
    model.max_seq_length = LENGTH
    with TemporaryDirectory() as folder:
        texts = max(1, int(min(64, _room(measures.shape) / (LENGTH * activation_bytes(measures.shape, half=True)))))
        loss: torch.nn.Module = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
        if Path(data).name == "asymmetric":
            loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=texts)
        sizes, own = (steps, measures.batch), {"logging_steps": measures.steps // 2}
        trainer = library_trainer(folder, model, Dataset.from_dict(columns), loss, *sizes, **own)
        trainer.add_callback(clock := Clock(measures))
        trainer.train()
    return _of_library(base, rows, measures, clock, trainer)


@quiet()
def train_flagembedding(base: str, data: str, shape: str) -> dict[str, float]:
    """Its encoder-only trainer, as `benchmarks.training_flagembedding` sets it up."""
    from benchmarks.training_flagembedding import make_trainer, write_pairs

    measures, rows = SHAPES[shape], list(_texts(data))
    steps, prompts = measures.warm + measures.steps, {"anchor": "", "positive": ""}
    with TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(pairs, rows)
        sizes = steps, measures.batch, LENGTH, TEMPERATURE
        trainer = make_trainer(folder, base, str(pairs), prompts, *sizes, negatives=len(rows[0]) - 2)
        trainer.add_callback(clock := Clock(measures))
        trainer.train()
    return _of_library(base, rows, measures, clock, trainer)


def _of_library(base: str, rows: list[list[str]], measures: Measures, clock: Clock, trainer: Any) -> dict[str, float]:
    """The figures of a trainer that samples rows: their share of all rows' operations."""
    words = [len(text.split()) + 2 for row in rows for text in row]
    share = measures.batch * measures.steps / len(rows)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return _figures(measures.batch * measures.steps, share * _operations(base, words), clock.seconds, losses[-1])


def _room(shape: Shape) -> float:
    """Bytes left for activations on the device, after the loaded weights and the later gradients and AdamW moments."""
    return 0.8 * torch.cuda.mem_get_info()[0] - 12 * shape.parameters if torch.cuda.is_available() else math.inf


@quiet()
def train_bare(base: str, data: str, shape: str) -> dict[str, float]:
    """Forward pass, backward pass and optimizer on tokens of one fixed shape: nothing to pad, mask, sort or gather.

    The batch is split into as many parts as the device's memory requires.
    """
    from transformers import AutoModel

    measures = SHAPES[shape]
    rows = list(_texts(data))
    lengths = np.array([len(text.split()) + 2 for row in rows for text in row])
    width = int((lengths**2).sum() / lengths.sum())  # gives attention the same cost as the texts
    number = max(1, round(lengths.sum() / len(rows) * measures.batch / width))
    device, half = "cuda" if torch.cuda.is_available() else "cpu", training_precision("auto") == "bf16"
    model = AutoModel.from_pretrained(base, dtype=torch.float32, add_pooling_layer=False, attn_implementation="sdpa")
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    taken = number * width * activation_bytes(measures.shape, half=True)
    parts = max(1, math.ceil(taken / _room(measures.shape)))
    ids = torch.randint(5, measures.shape.vocabulary - 1, (number, width), device=device)
    started = 0.0
    for step in range(measures.warm + measures.steps):
        if step == measures.warm:
            wait()
            started = time.perf_counter()
        for part in ids.chunk(parts):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = model(input_ids=part).last_hidden_state[:, 0].float().square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait()
    seconds = time.perf_counter() - started
    operations = measures.steps * _operations(base, [width] * number)
    return _figures(measures.batch * measures.steps, operations, seconds, float(loss))


def _passages(data: str, shape: str) -> list[str]:
    measures = SHAPES[shape]
    return [text for row in _texts(data) for text in row[1:]][: 4 * measures.batch * measures.steps]


@quiet()
def encode_ours(base: str, data: str, shape: str) -> dict[str, float]:
    """Encode as the stages do, in bfloat16; tokenising is timed too."""
    from pipeline.core.embedding import Embedder
    from pipeline.core.models import load_folder

    texts = _passages(data, shape)
    embedder = Embedder(load_folder(Path(base)).eval(), LENGTH, precision="bf16", show_progress_bar=False)
    embedder.encode(embedder.tokenise(texts[:64]))
    wait()
    started = time.perf_counter()
    ids = embedder.tokenise(texts)
    embedder.encode(ids)
    seconds = time.perf_counter() - started
    return _figures(len(texts), _operations(base, [len(text) for text in ids]) / 3, seconds, 0.0)


@quiet()
def encode_sentence_transformers(base: str, data: str, shape: str) -> dict[str, float]:
    """`SentenceTransformer.encode` with bfloat16 weights and 256 texts per batch."""
    from pipeline.core.models import load_folder

    texts, model = _passages(data, shape), load_folder(Path(base)).eval().bfloat16()
    model.max_seq_length = LENGTH
    model.encode(texts[:64])
    wait()
    started = time.perf_counter()
    model.encode(texts, batch_size=256, show_progress_bar=False)
    seconds = time.perf_counter() - started
    lengths = [len(text.split()) + 2 for text in texts]
    return _figures(len(texts), _operations(base, lengths) / 3, seconds, 0.0)


@quiet()
def same(base: str, shape: str) -> dict[str, float]:
    """Packed against padded embeddings: the least cosine in bfloat16, the largest distance of packed ones from float32;
    and the device's peak TFLOP/s in a matrix product."""
    from pipeline.core.models import load_folder
    from pipeline.core.packed import first_position_of, pack, use_packed
    from training.batches import MiniBatchCollator
    from training.memory import Budget

    random, model = np.random.default_rng(2), load_folder(Path(base)).eval()
    texts = [
        random.integers(5, SHAPES[shape].shape.vocabulary - 1, length).tolist()
        for length in sorted([1, 7, 40, 200, 511, 512])
    ]
    features = MiniBatchCollator(model.tokenizer.pad_token_id, Budget(10**6, 0)).features(texts)

    def embedded(inputs: dict[str, Any], half: bool) -> torch.Tensor:
        moved = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in inputs.items()}
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            return model(moved)["sentence_embedding"].float()

    exact, padded = embedded(features, False), embedded(features, True)
    use_packed(model)
    packed = embedded(pack(texts, first_position_of(model)), True)
    cosine = float(torch.nn.functional.cosine_similarity(packed, padded).min())
    away = float(1 - torch.nn.functional.cosine_similarity(packed, exact).min())
    seconds = 1.0 if shape == "gpu" else 0.05
    return {"least_cosine": cosine, "from_float32": away, "peak": measured_teraflops(torch.bfloat16, seconds)}
