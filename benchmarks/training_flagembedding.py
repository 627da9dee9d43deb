"""FlagEmbedding's trainer on the benchmark's pairs; runs in its own environment (see `benchmarks.training`)."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def train_flagembedding(**settings: Any) -> float:
    """Seconds of the steps of `make_trainer` on a CPU."""
    with TemporaryDirectory() as folder:
        trainer = make_trainer(folder, **settings)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def make_trainer(
    folder: str,
    init: str,
    pairs: str,
    prompts: dict[str, str],
    steps: int,
    batch_size: int,
    length: int,
    temperature: float,
    negatives: int = 0,
) -> Any:
    """The trainer of its encoder-only base runner; pooling and normalisation as the model's.

    On a GPU with gradient checkpointing, as in its examples: a batch of the benchmark doesn't fit without it.
    """
    import torch
    from FlagEmbedding.abc.finetune.embedder import (
        AbsEmbedderDataArguments,
        AbsEmbedderModelArguments,
        AbsEmbedderTrainingArguments,
    )
    from FlagEmbedding.finetune.embedder.encoder_only.base import EncoderOnlyEmbedderRunner

    pooling = json.loads((Path(init) / "1_Pooling/config.json").read_text())
    mean = "mean" in str(pooling.get("pooling_mode")) or pooling.get("pooling_mode_mean_tokens", False)
    capabilities, gpu = torch.cpu.get_capabilities(), torch.cuda.is_available()
    runner = EncoderOnlyEmbedderRunner(
        AbsEmbedderModelArguments(model_name_or_path=init, cache_dir=folder),
        AbsEmbedderDataArguments(
            train_data=[pairs],
            cache_path=folder,
            train_group_size=1 + negatives,
            query_max_len=length,
            passage_max_len=length,
            query_instruction_for_retrieval=prompts["anchor"],
            passage_instruction_for_retrieval=prompts["positive"],
        ),
        AbsEmbedderTrainingArguments(
            output_dir=f"{folder}/output",
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-5,
            bf16=gpu or bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")),
            use_cpu=not gpu,
            gradient_checkpointing=gpu,
            temperature=temperature,
            sentence_pooling_method="mean" if mean else "cls",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    return runner.trainer


def write_pairs(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows of anchor, positive and negatives in FlagEmbedding's format."""
    entries = ({"query": anchor, "pos": [positive], "neg": negatives} for anchor, positive, *negatives in rows)
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    path.write_text("".join(lines), encoding="utf-8")
