"""FlagEmbedding's trainer on the benchmark's pairs; runs in an environment of its own (see `benchmarks.training`)."""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory


def train_flagembedding(
    init: str, pairs: str, prompts: dict[str, str], steps: int, batch_size: int, length: int, temperature: float
) -> float:
    """Seconds of the steps, with its encoder-only base runner; pooling and normalisation as the model's."""
    import torch
    from FlagEmbedding.abc.finetune.embedder import (
        AbsEmbedderDataArguments,
        AbsEmbedderModelArguments,
        AbsEmbedderTrainingArguments,
    )
    from FlagEmbedding.finetune.embedder.encoder_only.base import EncoderOnlyEmbedderRunner

    pooling = json.loads((Path(init) / "1_Pooling/config.json").read_text())
    mean = "mean" in str(pooling.get("pooling_mode")) or pooling.get("pooling_mode_mean_tokens", False)
    capabilities = torch.cpu.get_capabilities()
    with TemporaryDirectory() as folder:
        runner = EncoderOnlyEmbedderRunner(
            AbsEmbedderModelArguments(model_name_or_path=init, cache_dir=folder),
            AbsEmbedderDataArguments(
                train_data=[pairs],
                cache_path=folder,
                train_group_size=1,
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
                bf16=bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")),
                use_cpu=True,
                temperature=temperature,
                sentence_pooling_method="mean" if mean else "cls",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
        )
        started = time.perf_counter()
        runner.trainer.train()
        return time.perf_counter() - started
