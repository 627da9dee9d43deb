"""`make bench NAME=evaluation`: evaluation against the reference implementation.

Encoding for encodechka is compared with its reference protocol, text by text in float32, on a seeded sample of 2,000
distinct texts of its sentence tasks; loading the model is not timed. The data come from
$ENCODECHKA_DATA_PATH or the folder of real data next to the checkout.
"""

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import Side, alternate, row, run_main, write
from benchmarks.real_texts import SHARED
from benchmarks.start import demo_base

TEXTS = 2000
SEED = 42
TOKENS = 128
COLUMNS = {
    "stsb_dev": ("sentence1", "sentence2"),
    "para_gold": ("text_1", "text_2"),
    "xnli_ru": ("sentence1", "sentence2"),
    "SentiRuEval2016_small_train": ("text",),
    "SentiRuEval2016_small_test": ("text",),
    "toxic_train": ("text",),
    "toxic_test": ("text",),
    "inappropriate_train": ("text",),
    "inappropriate_test": ("text",),
    "intents_train": ("answer", "text"),
    "intents_test": ("text",),
}


def sample_texts() -> list[str]:
    """The seeded sample of distinct sentence-task texts."""
    from evaluation.suites.encodechka.files import DataFiles
    from pipeline.core.seeding import generator

    folder = os.environ.get("ENCODECHKA_DATA_PATH") or str(SHARED / "encodechka")
    files = DataFiles(folder, Path("runs/cache/encodechka"))
    texts = sorted({row[column] for name, columns in COLUMNS.items() for row in files(name) for column in columns})
    chosen = generator(SEED, "benchmark", "encodechka").choice(len(texts), size=TEXTS, replace=False)
    return [texts[index] for index in chosen]


def encode_ours(folder: str, precision: str) -> float:
    """Seconds for all pooled variants of the sample, in batches of similar length."""
    from evaluation.encoder import Encoder

    texts, encoder = sample_texts(), Encoder(Path(folder), precision=precision)
    encoder.variants(texts[:8])
    started = time.perf_counter()
    encoder.variants(texts)
    return time.perf_counter() - started


def encode_text_by_text(folder: str) -> float:
    """Seconds for the same variants computed as the reference does: one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts, tokenizer = sample_texts(), AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(text: str) -> dict[str, Any]:
        batch = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.no_grad():
            output = model(**batch)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        hidden = output.last_hidden_state
        raw = {"cls": hidden[:, 0], "mean": (hidden * mask).sum(1) / mask.sum(1), "pooler": output.pooler_output}
        unit = {f"{name}_norm": torch.nn.functional.normalize(value) for name, value in raw.items()}
        return {name: value[0].numpy() for name, value in (raw | unit).items()}

    for text in texts[:8]:
        embed(text)
    started = time.perf_counter()
    for text in texts:
        embed(text)
    return time.perf_counter() - started


def main() -> None:
    """Measure all sides alternately and write runs/bench/evaluation.json."""
    sample_texts()  # ends here if the data are missing
    folder = str(demo_base())
    slow, fast, half = alternate(
        Side("benchmarks.evaluation:encode_text_by_text", {"folder": folder}),
        Side("benchmarks.evaluation:encode_ours", {"folder": folder, "precision": "fp32"}),
        Side("benchmarks.evaluation:encode_ours", {"folder": folder, "precision": "bf16"}),
    )
    peer = "encodechka's reference, text by text, float32"
    what, memory = f"encoding {TEXTS} texts", "encoding in batches, peak memory"
    ours, theirs = fast.peak_bytes / 2**20, slow.peak_bytes / 2**20
    rows = [
        row("encodechka_time_vs_text_by_text", f"{what}, float32", "s", fast.seconds, peer, slow.seconds, "lower"),
        row("encodechka_bf16_time_vs_text_by_text", f"{what}, bf16", "s", half.seconds, peer, slow.seconds, "lower"),
        row("encodechka_memory_vs_text_by_text", memory, "MiB", ours, peer, theirs, "lower"),
    ]
    write("evaluation", rows)


if __name__ == "__main__":
    run_main(main)
