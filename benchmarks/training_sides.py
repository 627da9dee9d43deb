"""What `benchmarks.training` times in fresh processes: our trainer, the bare step, sentence-transformers' trainer.

All train the same model on the same 512 pairs: 16 steps of 32, contrastive loss only, temperature 0.02, the same
prompts, at most 256 tokens, bfloat16 where supported. Each function returns the seconds of the 16 steps.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.core.console import quiet

STEPS, BATCH_SIZE, LENGTH, TEMPERATURE = 16, 32, 256, 0.02


def _planned(init: str, data: str, side: str, cache: str, **options: Any) -> tuple[Any, ...]:
    """Config, model, prepared sets and the plan over the whole set, with `options` of the side."""
    from configs.schema.config import Config
    from configs.schema.training import SideConfig, TrainingConfig
    from training.batch_plan import BatchPlan, plan_batches
    from training.model_files import load_model
    from training.sets import prepare_sets

    settings = SideConfig(
        batch_size=BATCH_SIZE,
        anchor_length=LENGTH,
        positive_length=LENGTH,
        negatives=0,
        mini_batch_tokens=BATCH_SIZE * 2 * LENGTH,
        checkpoint_steps=10**6,
        temperature=TEMPERATURE,
        **options,
    )
    config = Config(profile="demo", run="bench")
    config.training = TrainingConfig(settings, settings, settings)
    model = load_model(Path(init), "auto", settings)
    sets = prepare_sets(side, settings, model, Path(data), Path(cache))
    plan = plan_batches([item.rows for item in sets.train.values()], settings, config.seed)
    return config, model, sets, BatchPlan(plan.batches[:STEPS], plan.left_out)


@quiet()
def padding(init: str, data: str, side: str) -> dict[str, Any]:
    """The planned steps' padding, the rows they take, and the padding of the same rows in the library's batches."""
    import numpy as np

    from training.batches import padded_tokens

    with TemporaryDirectory() as cache:
        config, _, sets, plan = _planned(init, data, side, cache)
        (item,) = sets.train.values()
        settings = config.side(side)
        ours = np.sum([padded_tokens(item, batch, settings) for batch in plan.batches], axis=0)
        rows = np.concatenate([batch.rows for batch in plan.batches])
        shuffled = np.random.default_rng(0).permutation(rows).reshape(STEPS, BATCH_SIZE)
        anchors, positives = (numbers[shuffled] for numbers in (item.rows.anchors, item.rows.positives))
        columns = item.anchors.lengths[anchors], item.passages.lengths[positives]
        wide = sum(int(lengths.max(axis=1).sum()) * BATCH_SIZE for lengths in columns)
        return {
            "rows": rows.tolist(),
            "planned": len(item),
            "ours": float(1 - ours[0] / ours[1]),
            "theirs": float(1 - ours[0] / wide),
        }


@quiet()
def train_ours(init: str, data: str, side: str, **options: Any) -> float:
    """Our trainer on the planned steps."""
    from pipeline.core.artefact import StageFolder
    from pipeline.core.device import keep_freed_memory
    from training.finetune import make_trainer

    keep_freed_memory()
    with TemporaryDirectory() as cache:
        config, model, sets, plan = _planned(init, data, side, cache, **options)
        stage = StageFolder(side, Path(cache), "bench", {})
        sets.dev.clear()
        trainer = make_trainer(config, stage, model, sets, plan)
        trainer.args.save_strategy = "no"
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


@quiet()
def train_bare(init: str, data: str, side: str) -> float:
    """Only forward, backward, clipping and optimizer, on the tensors that our trainer gets."""
    from pipeline.core.device import keep_freed_memory, training_precision
    from training.batches import MiniBatchCollator, PlannedDataset
    from training.losses import PlannedLoss
    from training.memory import planned_budget

    keep_freed_memory()
    with TemporaryDirectory() as cache:
        config, model, sets, plan = _planned(init, data, side, cache)
        settings = config.side(side)
        rows = PlannedDataset(sets.train.values(), 0.0)
        budget = planned_budget(settings)
        collate = MiniBatchCollator(model.tokenizer.pad_token_id, budget)
        batches = [collate(rows.__getitems__(batch)) for batch in plan.batches]
    loss = PlannedLoss(model, settings, budget.tokens)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True)
    model.train()
    parts = [
        [
            {key: batch[f"text_{number}_{key}"] for key in ("input_ids", "attention_mask")}
            for number in range(sum(name.endswith("input_ids") for name in batch))
        ]
        for batch in batches
    ]
    started = time.perf_counter()
    for batch, features in zip(batches, parts, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=training_precision("auto") == "bf16"):
            value = loss(features, batch["label"])
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def of_embeddings(width: int, rows: int, repeats: int = 20, **options: Any) -> float:
    """CPU seconds of the loss and its gradient for `rows` triplets' embeddings, as in symmetric sets."""
    from configs.schema.training import SideConfig
    from training.losses import PlannedLoss

    torch.manual_seed(1)
    texts = torch.randn(3 * rows, width, requires_grad=True)
    part = {"input_ids": torch.zeros(3 * rows, 1), "sentence_embedding": texts}
    labels = {"position": torch.arange(3 * rows).view(rows, 3), "score": torch.full((rows,), torch.nan)}
    side = SideConfig(temperature=TEMPERATURE, **options)
    loss = PlannedLoss(torch.nn.Identity(), side, mini_batch_num_tokens=10**6)
    loss.measures = False
    for repeat in range(repeats + 1):
        if repeat == 1:  # the first call allocates buffers
            started = time.process_time()
        loss([part], labels | {"angle_weight": side.angle_weight}).backward()
    return (time.process_time() - started) / repeats


@quiet()
def train_sentence_transformers(
    init: str, pairs: str, prompts: dict[str, str], keep_memory: bool = False, in_order: bool = False
) -> float:
    """The library's trainer, set up as documented for in-batch negatives: no duplicates in a batch.

    With `keep_memory` glibc keeps freed memory, as in ours; with `in_order` the batches are those of our plan.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from torch.utils.data import SequentialSampler

    from pipeline.core.device import keep_freed_memory

    def planned_order(dataset: Any, batch_size: int, drop_last: bool, **kwargs: Any) -> DefaultBatchSampler:
        return DefaultBatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    if keep_memory:
        keep_freed_memory()
    model = SentenceTransformer(init, device="cpu")
    model.max_seq_length = LENGTH
    loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    own: dict[str, Any] = {"prompts": prompts, "use_cpu": True}
    own |= {"batch_sampler": planned_order} if in_order else {}
    with TemporaryDirectory() as folder:
        rows = Dataset.from_parquet(pairs, cache_dir=folder)
        trainer = library_trainer(folder, model, rows, loss, STEPS, BATCH_SIZE, **own)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def library_trainer(folder: str, model: Any, rows: Any, loss: Any, steps: int, batch_size: int, **settings: Any) -> Any:
    """The library's trainer, set up as documented for in-batch negatives, with `settings` overriding its arguments."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers

    from pipeline.core.device import training_precision

    usual: dict[str, Any] = {
        "use_cpu": not torch.cuda.is_available(),
        "bf16": training_precision("auto") == "bf16",
        "batch_sampler": BatchSamplers.NO_DUPLICATES,
        "learning_rate": 1e-5,
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    sizes: dict[str, Any] = {"max_steps": steps, "per_device_train_batch_size": batch_size}
    arguments = SentenceTransformerTrainingArguments(folder, **sizes, **(usual | settings))
    return SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
