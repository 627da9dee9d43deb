"""The init model in, the fine-tuned model out, with everything of the folder that is not a weight kept as it is."""

import dataclasses
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.schema.training import SideConfig
from pipeline.core.checkpoint import WEIGHTS
from pipeline.core.errors import UserError
from pipeline.core.models import NOT_THE_MODEL, load_folder
from pipeline.core.precision import attention_implementation


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What stands before a set's texts; symmetric sets have the query prompt on both sides."""

    anchor: str
    positive: str


def load_model(folder: Path, attention: str, side: SideConfig) -> SentenceTransformer:
    """The model with float32 weights, the side's dropout, and its unused pooler frozen.

    Raises UserError where it can't be loaded, or a length of the side is beyond the model's.
    """
    remedy = "make init again, or mend base.attention"
    lengths = side.lengths()
    implementation = attention_implementation(attention, max(lengths.values()))
    model = load_folder(folder, "cpu", remedy=remedy, attn_implementation=implementation)
    most = model.max_seq_length or 0
    for name, length in lengths.items():
        if length > most:
            raise UserError(
                f"{length} tokens are more than the base's {most}",
                where=f"config key training.<side>.{name}",
                remedy=f"use at most {most}",
            )
    if implementation == "eager":
        encoder: Any = encoder_of(model)
        encoder.encoder.register_forward_pre_hook(_with_narrow_mask, with_kwargs=True)
    _check_prompts(model, folder)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = side.dropout
    # No gradient reaches the pooler of a model with CLS or mean pooling, at which DistributedDataParallel would stop.
    pooler = getattr(encoder_of(model), "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def _with_narrow_mask(layers: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The mask in autocast's type, as eager attention's scores are: in 32 bit it would widen them, for each layer.

    What attention weighs by is the same, since softmax adds up in 32 bit and its result is rounded in any case.
    """
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.is_floating_point() and torch.is_autocast_enabled(mask.device.type):
        kwargs["attention_mask"] = mask.to(torch.get_autocast_dtype(mask.device.type))
    return args, kwargs


def encoder_of(model: SentenceTransformer) -> PreTrainedModel:
    """The transformers model inside."""
    encoder = model[0].model
    assert isinstance(encoder, PreTrainedModel)
    return encoder


def _check_prompts(model: SentenceTransformer, folder: Path) -> None:
    excluded = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    if excluded and any(model.prompts.values()):
        raise UserError(
            "pooling leaves the prompt out, which training doesn't support",
            where=str(folder),
            remedy="set include_prompt to true in 1_Pooling/config.json of the base",
        )


def prompts_of(model: SentenceTransformer, data_side: str) -> Prompts:
    """Symmetric sets take the query prompt on both sides, asymmetric ones query and document."""
    query = model.prompts.get("query") or ""
    document = model.prompts.get("document") or ""
    return Prompts(query, query if data_side == "symmetric" else document)


def save_model(model: SentenceTransformer, init: Path, folder: Path) -> None:
    """Write a sentence-transformers folder: new weights; tokenizer, pooling, prompts and heads are those of `init`."""
    shutil.copytree(init, folder, ignore=shutil.ignore_patterns(*NOT_THE_MODEL, WEIGHTS))
    with TemporaryDirectory(dir=folder) as scratch:
        encoder_of(model).save_pretrained(scratch)
        (Path(scratch) / WEIGHTS).rename(folder / WEIGHTS)
