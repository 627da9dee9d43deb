"""One optimizer step at full size: how long it takes and how much memory, in a fresh process.

`python -m benchmarks.full_size_step [--tokens 2048]`. A random encoder of the shape of bge-m3 with the smaller
vocabulary (359 M parameters), 256 pairs of up to 256 tokens by gradient caching, bfloat16 where the device has it.
"""

import argparse
import time

import numpy as np

from benchmarks.measurement import Side, measure
from pipeline.core.console import show_table

PAIRS, LENGTH, VOCABULARY = 256, 256, 46_166
LIMIT = 16e9  # bytes


def main() -> None:
    """Measure one step and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="padded tokens of a mini-batch")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    done = measure(Side("benchmarks.full_size_step:step", {"tokens": options.tokens, "pairs": options.pairs}))
    rows = [
        ["parameters", done.result["parameters"]],
        ["tokens", done.result["tokens"]],
        ["seconds of the step", done.result["seconds"]],
        ["peak GB", done.peak_bytes / 1e9],
        ["within 16 GB", done.peak_bytes <= LIMIT],
    ]
    show_table(f"one step of {options.pairs} pairs of up to {LENGTH} tokens", ["what", "value"], rows)


def step(tokens: int, pairs: int) -> dict[str, float]:
    """Forward, backward, clipping and AdamW on random texts whose lengths are spread over 16 to 256 tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from torch import nn
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from pipeline.core.precision import attention_implementation, uses_bfloat16
    from training.batches import MiniBatches
    from training.losses import PlannedLoss

    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=8194, type_vocab_size=1, pad_token_id=1, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = XLMRobertaModel(config)
    encoder.set_attn_implementation(attention_implementation("auto", LENGTH))
    assert encoder.pooler is not None
    encoder.pooler.requires_grad_(False)

    class Tokens(nn.Module):
        """The encoder in the library's interface."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, features: dict[str, torch.Tensor], **kwargs: object) -> dict[str, torch.Tensor]:
            return {**features, "token_embeddings": self.encoder(**features).last_hidden_state}

    model = SentenceTransformer(modules=[Tokens(), Pooling(1024, "cls"), Normalize()], device="cpu").train()
    random = np.random.default_rng(0)
    texts = [random.integers(4, VOCABULARY, size).tolist() for size in random.integers(16, LENGTH + 1, 2 * pairs)]
    rows = [
        {"texts": texts[2 * index : 2 * index + 2], "score": float("nan"), "angle_weight": 0.0}
        for index in range(pairs)
    ]
    batch = MiniBatches(1, tokens, 256)(rows)
    parts = sum(name.endswith("input_ids") for name in batch)
    keys = ("input_ids", "attention_mask")
    features = [{key: batch[f"text_{number}_{key}"] for key in keys} for number in range(parts)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    loss = PlannedLoss(model, 0.02, 20.0, ["query_to_doc"], None, tokens)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=uses_bfloat16("auto")):
        value = loss(features, batch["label"])
    value.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return {
        "seconds": time.perf_counter() - started,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": sum(map(len, texts)),
    }


if __name__ == "__main__":
    main()
