"""A random model of any shape and rows of random words, to measure costs: those of a step depend on nothing else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from configs.schema.init import BaseConfig
from data.pair_files import PairWriter
from training.bases.folder import write_modules, write_tokenizer_config
from training.bases.random_model import random_model
from training.cost_model import Shape

SPECIAL, LAST = ("<s>", "<pad>", "</s>", "<unk>"), "<mask>"
SMALL = 0.02  # standard deviation of the weights: with larger ones, many layers overflow half precision
SPREAD = 0.4  # of the lengths' logarithms around that of their mean


def write_base(folder: Path, shape: Shape, base: BaseConfig) -> None:
    """Write a random model of this shape without dropout, whose tokenizer has one piece per word: w0, w1, ...

    Positions, pooling and prompts are those of `base`.
    """
    first, pad, last, _ = range(len(SPECIAL))
    config = shape.model_config(
        vocab_size=shape.vocabulary,
        max_position_embeddings=base.max_length + 2,  # positions start after the id of <pad>
        initializer_range=SMALL,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
        pad_token_id=pad,
        **{"bos_token_id": first, "cls_token_id": first, "eos_token_id": last, "sep_token_id": last},
    )
    random_model(config, seed=0).save_pretrained(folder)
    pieces = [*SPECIAL, *(f"w{word}" for word in range(words(shape))), LAST]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens([*SPECIAL, LAST])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder, base.max_length)
    write_modules(folder, base, shape.hidden_size)


def words(shape: Shape) -> int:
    """How many words the tokenizer of `write_base` knows."""
    return shape.vocabulary - len(SPECIAL) - 1


def write_rows(path: Path, rows: Sequence[Sequence[float]], longest: int, shape: Shape, labels: bool = False) -> None:
    """Write a set of pairs. A row gives the mean tokens of its anchor, positive and negatives, special ones included.

    With `labels` every other pair has the score 0.5, so that AnglE has something to order.
    """
    random = np.random.default_rng(1)

    def text(tokens: float) -> str:
        length = int(np.clip(random.lognormal(np.log(tokens), SPREAD), 4, longest)) - 2
        return " ".join(f"w{word}" for word in random.integers(0, words(shape), length))

    texts = [[text(tokens) for tokens in row] for row in rows]
    scores = [0.5 if labels and index % 2 else None for index in range(len(rows))]
    anchors, positives, negatives = ([row[part] for row in texts] for part in (0, 1, slice(2, None)))
    with PairWriter(path, scored=True) as file:
        file.write(pl.DataFrame({"anchor": anchors, "positive": positives, "negatives": negatives, "score": scores}))
