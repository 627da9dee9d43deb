"""The only place where models are loaded.

A loaded model embeds as `SentenceTransformer(folder).encode` does; a folder that can't is refused with one line.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from pipeline.core.console import log, quiet
from pipeline.core.errors import UserError, first_line
from pipeline.core.machine import require_kernels, usable_gpus
from pipeline.core.model_folder import MODULES_FILE, PROBE, RAISED_BY_FILES, REMEDY, TORCH_FILES, transformer_folder
from pipeline.core.safetensors_io import WEIGHTS_FILE

# Families whose positions and attention are known here, so that texts can be packed.
OFFSET = ("roberta", "camembert", "xlm-roberta")  # their positions start after the padding token's id
FAMILIES = ("bert", *OFFSET, "modernbert", "eurobert", "qwen3")
ADAPTER = "adapter_config.json"
USUAL = ("Transformer", "StaticEmbedding", "Pooling", "Normalize")  # modules that are compatible with each other
# Settings of sentence_bert_config.json that change tokenisation from that of a plain call of the tokenizer.
UNUSED = ("processing_kwargs", "query_length", "document_length", "query_expansion")
FIRST_DAYS = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")
TRIAL = ("Река", PROBE)  # of different lengths, so that one of them is padded
PADDING_TOLERANCE = 1e-4  # relative to the largest value in the embeddings


def load_folder(
    folder: Path, device: str | None = None, remedy: str = REMEDY, finite: bool = True, **model_kwargs: Any
) -> SentenceTransformer:
    """The sentence-transformers model of a local folder, in float32, without remote code; it pads on the right.

    `device` None selects the fastest. A folder without modules gets the library's default ones, with a warning.

    Raises UserError for files that can't be read or don't match, custom code, an adapter, missing weights (transformers
    would initialise them at random), settings that only the library's `encode` applies, and with `finite` a tensor with
    NaN or infinity.
    """
    device = device or ("cuda" if usable_gpus() else "cpu")
    kwargs = {"dtype": torch.float32, **model_kwargs}
    if (transformer_folder(folder) / ADAPTER).is_file():  # the library would look for its model on the Hub
        what, merge = f"{ADAPTER}: an adapter's weights", "merge it into its model and save that"
        raise UserError(what, where=str(folder), remedy=merge)
    try:
        if device.startswith("cuda"):
            require_kernels(device)
        model = SentenceTransformer(
            str(folder), device=device, model_kwargs=kwargs, trust_remote_code=False, local_files_only=True
        )
    except (*RAISED_BY_FILES, SafetensorError) as error:
        is_damage = isinstance(error, UnpicklingError | EOFError) or "PytorchStreamReader" in str(error)
        damaged = "a weight file is damaged, or holds more than tensors"  # torch would explain how to run its code
        what = f"the model can't be loaded: {damaged if is_damage else first_line(error)}"
        raise UserError(what, where=str(folder), remedy=remedy) from error
    if not model.module_kwargs:
        why = "is no dense model" if (folder / MODULES_FILE).is_file() else f"has no {MODULES_FILE}"
        how = getattr(model[-1], "pooling_mode", "nothing")
        log.warning("%s %s: sentence-transformers pools its tokens by %s", folder, why, how)
    if unused := _unused_setting(model):
        raise UserError(f"the model has a setting that can't be applied: {unused}", where=str(folder), remedy=remedy)
    if missing := missing_weights(model, folder):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weights lack the tensor {missing[0]}{more}", where=str(folder), remedy=remedy)
    for name, parameter in model.named_parameters() if finite else ():
        if not torch.isfinite(parameter.sum(dtype=torch.float64)):
            raise UserError(f"the tensor {name} holds NaN or infinity", where=str(folder), remedy=remedy)
    _settle(model, folder)
    return model


def _settle(model: SentenceTransformer, folder: Path) -> None:
    """Make the model truncate texts at its number of positions and pad on the right, provided no embedding changes.

    Raises UserError if it admits more tokens than it has positions, if a text's embedding depends on the padding to
    other texts, or if the library can't embed a text with these modules.
    """
    limit, positions = model.max_seq_length or 0, most_tokens(model)
    if positions is not None and limit > positions:
        if limit != cast(Any, model[0]).model.config.max_position_embeddings:
            what = f"texts of {limit} tokens are admitted, but the model has {positions} positions"
            remedy = f"set max_seq_length to {positions} in sentence_bert_config.json"
            raise UserError(what, where=str(folder), remedy=remedy)
        model.max_seq_length = positions  # the library ignores that no token has the positions up to <pad>
    pads_left = getattr(model.tokenizer, "padding_side", "right") == "left"
    unusual = [type(module).__name__ for module in model if type(module).__name__ not in USUAL]
    if not pads_left and not unusual:
        return
    culprit = "padding_side in tokenizer_config.json is left" if pads_left else f"there is a module {unusual[0]}"
    remedy = "pad on the right" if pads_left else "remove it"
    try:
        together, alone = (
            model.encode(list(TRIAL), prompt="", batch_size=size, show_progress_bar=False) for size in (len(TRIAL), 1)
        )
    except RAISED_BY_FILES as error:
        what = f"{culprit}, and the model can't embed a text: {first_line(error)}"
        raise UserError(what, where=str(folder), remedy=remedy) from error
    if not abs(together - alone).max() <= PADDING_TOLERANCE * abs(alone).max():
        what = f"{culprit}, and a text's embedding depends on the length of the others in its batch"
        raise UserError(what, where=str(folder), remedy=remedy)
    if pads_left:
        model.tokenizer.padding_side = "right"


def _unused_setting(model: SentenceTransformer) -> str | None:
    """A setting of the folder that only the library's own `encode` applies, or None."""
    first: Any = model[0]
    if type(first) is StaticEmbedding:
        return None
    if type(first) is not Transformer:
        return f"modules.json starts with {type(first).__name__}, not with Transformer or StaticEmbedding"
    if "message" in first.modality_config:
        return "modality_config in sentence_bert_config.json wants messages"
    return next((f"{key} in sentence_bert_config.json" for key in UNUSED if getattr(first, key)), None)


def most_tokens(model: SentenceTransformer) -> int | None:
    """The encoder's number of positions in tokens; None if its family is not known to have a limit."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    if config is None or config.model_type not in FAMILIES:
        return None
    return config.max_position_embeddings - (2 if config.model_type in OFFSET else 0)


def missing_weights(model: SentenceTransformer, folder: Path) -> list[str]:
    """Parameters of the encoder that transformers finds in no weight file of the folder, except those of a pooler."""
    encoder: Any = getattr(model[0], "model", None)
    if encoder is None:
        return []
    place = transformer_folder(folder)
    with quiet():  # the names only; reports were shown when it was loaded
        _, found = type(encoder).from_pretrained(
            place, device_map="meta", output_loading_info=True, local_files_only=True
        )
    return sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weight files: safetensors, or torch's own if there are none.

    LayerNorm parameters are named weight and bias, also if the file has BERT's original names.
    """
    names: set[str] = set()
    single = folder / WEIGHTS_FILE  # an earlier save's shards may be next to it
    for file in [single] if single.is_file() else folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    for file in () if names else folder.glob(TORCH_FILES):
        names.update(torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file)))
    return {FIRST_DAYS.sub(lambda end: {"gamma": "weight", "beta": "bias"}[end[0]], name) for name in names}
