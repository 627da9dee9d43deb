"""What a step costs: floating-point operations, memory and hours, from the encoder's shape."""

import dataclasses
import json
from pathlib import Path

from configs.schema.init import BaseConfig
from pipeline.core.errors import UserError

PER_LAYER = 34  # bytes of activations a token, layer and unit of width in 16 bit (arXiv:2205.05198, section 4.1)
RESIDUALS = 8  # of those, more: both residual streams stay in 32 bit under autocast


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of an encoder that its cost depends on."""

    layers: int
    width: int
    inner: int  # of the feed-forward part
    vocabulary: int
    positions: int

    @property
    def encoder(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        """All trained parameters, biases and norms included, the pooler left out."""
        norms = self.layers * (9 * self.width + self.inner) + 2 * self.width
        return self.encoder + norms + (self.vocabulary + self.positions + 1) * self.width


KNOWN = {  # as their config.json on the Hub says, for a plan before anything is loaded
    "BAAI/bge-m3": Shape(24, 1024, 4096, 250_002, 8_194),
    "intfloat/multilingual-e5-small": Shape(12, 384, 1536, 250_037, 512),
}


def shape_of(folders: list[Path], base: BaseConfig) -> Shape:
    """The shape of the first model that is there, or of a known base; raises UserError where neither is."""
    for folder in folders:
        if (folder / "config.json").is_file():
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
            return Shape(*(values[name] for name in names))
    if base.hub in KNOWN:
        return KNOWN[base.hub]
    raise UserError("the model's shape isn't known yet", where=f"base {base.name}", remedy="make it first: make init")


def training_operations(shape: Shape, tokens: int, mean_square_length: float, passes: int) -> float:
    """Floating-point operations to train on so many tokens (with padding).

    A multiplication with a weight takes 2; scores and weighted sums of attention take 4 * length * width a token and
    layer. The backward pass costs two forward ones: `passes` is 3, or 4 where gradient caching embeds twice.
    `mean_square_length` is the sum of squared lengths divided by the number of tokens.
    """
    attention = 4 * mean_square_length * shape.width * shape.layers
    return passes * tokens * (2 * shape.encoder + attention)


def memory_bytes(shape: Shape, mini_batch_tokens: int, bfloat16: bool) -> dict[str, int]:
    """Bytes on one device: weights, gradients, AdamW's two moments, and activations of one mini-batch."""
    a_token = shape.layers * shape.width * (PER_LAYER + RESIDUALS if bfloat16 else 2 * PER_LAYER)
    return {
        "parameters": 4 * shape.parameters,
        "gradients": 4 * shape.parameters,
        "optimizer": 8 * shape.parameters,
        "activations": mini_batch_tokens * a_token,
    }
