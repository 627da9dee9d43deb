"""Loading the model to train and saving the trained one; everything in the folder but the weights is kept."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.schema.init import BaseConfig
from configs.schema.training import AdapterConfig, HeadsConfig, SideConfig
from pipeline.core.console import log
from pipeline.core.device import NARROW_FROM, PACKED, attention_implementation
from pipeline.core.errors import INSTALL, UserError
from pipeline.core.model_folder import STAGE_FILES, listed_modules, require_width, write_dtype
from pipeline.core.models import load_folder, stored_names
from pipeline.core.packed import is_packed, use_packed, why_not_packed
from pipeline.core.safetensors_io import WEIGHTS_FILE


def load_model(
    folder: Path, attention: str, side: SideConfig | HeadsConfig, key: str = "training", weights: bool = True
) -> SentenceTransformer:
    """The model with float32 weights, the side's dropout and adapter, and its unused pooler frozen.

    `key` is the side's config key. Without `weights` only shapes, tokenizer and prompts are read. Raises UserError
    where the model can't be loaded, or a length or dimension of the side is beyond the model's.
    """
    remedy = "make init again, or change base.attention"
    implementation = attention_implementation(attention, side.longest)
    options: dict[str, Any] = {} if weights else {"device_map": "meta", "finite": False}
    model = load_folder(folder, "cpu", remedy=remedy, attn_implementation=implementation, **options)
    most = model.max_seq_length or 0
    for name, length in side.lengths().items():
        if length > most:
            what = f"{length} tokens are more than the base's {most}"
            raise UserError(what, where=f"config key {key}.{name}", remedy=f"use at most {most}")
    if isinstance(side, SideConfig):
        _check_dimensions(side.dimensions, model.get_embedding_dimension() or 0, key)
    encoder = encoder_of(model)
    _spare_conversions(encoder, implementation)
    modules: Any = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = side.dropout
        for name, value in vars(module).items():
            if "dropout" in name and type(value) in (int, float):  # the attention of ModernBERT, T5 and others
                setattr(module, name, side.dropout)
    # No gradient reaches the pooler of a model with CLS or mean pooling, for which DistributedDataParallel would fail.
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    if side.adapter.rank is not None:
        add_adapter(encoder, side.adapter, f"{key}.adapter")
    return model


def _check_dimensions(dimensions: list[int], width: int, key: str) -> None:
    """Raise UserError where vectors have fewer dimensions; warn where the losses never see whole vectors."""
    require_width(dimensions, width, key)
    if dimensions and width not in dimensions:
        log.warning("%s.dimensions lack the model's own %d: whole vectors are not trained", key, width)


def add_adapter(encoder: PreTrainedModel, adapter: AdapterConfig, key: str) -> None:
    """Freeze the encoder and add the adapter, whose config key is `key`, to its linear layers.

    The adapter's product is zero at first. Raises UserError where peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        what, remedy = "an adapter needs the package peft", f"{INSTALL} peft"
        raise UserError(what, where=f"config key {key}.rank", remedy=remedy) from error
    inside: Any = getattr(encoder, "encoder", encoder)  # not the pooler, which no gradient reaches
    encoder.requires_grad_(False)
    names = {name.rpartition(".")[2] for name, module in inside.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.targets))
    try:
        inject_adapter_in_model(config, inside)
    except ValueError as error:
        what = f"no linear layer of the base is called {' or '.join(adapter.targets) or 'nothing'}"
        remedy = f"choose among {', '.join(sorted(names))}"
        raise UserError(what, where=f"config key {key}.targets", remedy=remedy) from error
    for layer in inside.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False  # autocast converts back what peft would convert to 32 bit


def merge_adapter(encoder: PreTrainedModel) -> None:
    """Add the adapter's product to the weights and remove it: the encoder has its original modules again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, layer.get_base_layer())


def choose_attention(model: SentenceTransformer, base: BaseConfig, half: bool, dropout: float) -> None:
    """Set up packed texts as `base.attention` says, and compile the layers where `base.compile` says so.

    `half` says whether the encoder trains in 16 bit. Raises UserError where the requested one can't run.
    """
    if base.attention in ("auto", PACKED):
        lacking = why_not_packed(model, half, dropout)
        if lacking is None:
            use_packed(model)
        elif base.attention == PACKED:
            what, remedy = f"{PACKED} needs {lacking}", "use base.attention=auto"
            raise UserError(what, where="config key base.attention", remedy=remedy)
        else:
            log.info("texts are padded: packing needs %s", lacking)
    if base.compile:
        lacking = "packed texts" if not is_packed(model) else None if find_spec("triton") else "the package triton"
        if lacking:
            what = f"compilation needs {lacking}"
            raise UserError(what, where="config key base.compile", remedy="use base.compile=false")
        encoder: Any = encoder_of(model)
        for layer in getattr(encoder, "layers", None) or encoder.encoder.layer:  # ModernBERT's, or BERT's
            layer.compile(dynamic=True)  # in place: parameters keep their names


def _spare_conversions(encoder: Any, attention: str) -> None:
    """Have each layer's attention get its mask and hidden states in autocast's type, where autocast is on."""
    if attention == "eager" and hasattr(encoder, "encoder"):
        encoder.encoder.register_forward_pre_hook(_with_narrow_mask, with_kwargs=True)
    for module in encoder.modules():
        linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
        if linear == {"query", "key", "value"}:  # not ALBERT's, which adds its input to attention's output
            module.register_forward_pre_hook(_converted_once)


def _with_narrow_mask(layers: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The mask in autocast's type, like eager attention's scores: in 32 bit it would widen them in each layer.

    Attention weights are the same, since softmax sums in 32 bit and its result is rounded in any case. Texts shorter
    than `NARROW_FROM` keep the wide mask.
    """
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape[-1] < NARROW_FROM:
        return args, kwargs
    if mask.is_floating_point() and torch.is_autocast_enabled(mask.device.type):
        kwargs["attention_mask"] = mask.to(torch.get_autocast_dtype(mask.device.type))
    return args, kwargs


def _converted_once(attention: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states in autocast's type; otherwise query, key and value each convert them and keep a copy for backward.

    Outputs are equal; the three gradients are added in 16 bit. On two cores a step of a small encoder takes 2 % less
    time, its activations 9 % less memory.
    """
    hidden, *others = args
    device = hidden.device.type
    return (hidden.to(torch.get_autocast_dtype(device)), *others) if torch.is_autocast_enabled(device) else args


def encoder_of(model: SentenceTransformer) -> PreTrainedModel:
    """The transformers model inside."""
    encoder = model[0].model
    assert isinstance(encoder, PreTrainedModel)
    return encoder


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors that training changes, by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def load_mean(model: nn.Module, files: Sequence[Path]) -> None:
    """Load the mean of the trained weights in safetensors files into the model; for an adapter, of its matrices."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        for name, weight in trained_weights(model).items():
            weight.copy_(torch.stack([file.get_tensor(name) for file in opened]).mean(0))


def save_model(model: SentenceTransformer, init: Path, folder: Path) -> None:
    """Write a sentence-transformers folder: new weights of every module, everything else copied from `init`.

    A pooler that `init` lacks was initialised randomly by transformers, and is left out.
    """
    shutil.copytree(init, folder, ignore=shutil.ignore_patterns(*STAGE_FILES, "*.safetensors*"))  # shards as well
    write_dtype(folder, "float32")
    encoder, stored = encoder_of(model), stored_names(init)
    made_up = {name for name in encoder.state_dict() if name.startswith("pooler.") and name not in stored}
    with TemporaryDirectory(dir=folder) as scratch:
        tensors = {name: tensor for name, tensor in encoder.state_dict().items() if name not in made_up}
        encoder.save_pretrained(scratch, state_dict=tensors)
        (Path(scratch) / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    for (_, path), module in zip(listed_modules(init), model, strict=True):
        if path and isinstance(module, Module) and any(True for _ in module.parameters()):
            module.save_torch_weights(str(folder / path))
