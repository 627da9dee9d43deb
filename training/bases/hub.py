"""An existing base, from the Hub, a mirror of it, or a folder, as a plain encoder with the config's modules.

Where the model's own folder and the config differ, an error names the module or the key: nothing of a
sentence-transformers model is dropped silently.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedModel

from configs.schema.init import BaseConfig
from pipeline.core.artefact import read_json, write_json
from pipeline.core.console import log, quiet
from pipeline.core.embedding import PROMPTS
from pipeline.core.errors import UserError
from pipeline.core.hub import local_model
from pipeline.core.model_folder import (
    HEADS,
    MODULES_FILE,
    PROBE,
    TORCH_FILES,
    encoder_config,
    listed_modules,
    read_tokenizer,
    resolve_model,
    transformer_folder,
)
from pipeline.core.models import stored_names
from pipeline.core.safetensors_io import INDEX_FILE, WEIGHTS_FILE, weight_files
from training.bases.folder import XLM_R_TOKENS, named_by, opened, write_modules, write_tokenizer_config
from training.model_files import encoder_of

TOKENIZER = "tokenizer.json"
NEEDED = ("config.json", TOKENIZER)
OPTIONAL = ("sentencepiece.bpe.model", *HEADS)
# Settings of sentence_bert_config.json that change nothing; all others must be empty or false.
NEUTRAL = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def make_from_hub(config: BaseConfig, folder: Path, mirror: str | None) -> dict[str, Any]:
    """Write the base into `folder`: the model's files unchanged, with this config's modules and tokenizer settings.

    Weights that are not named as those of the plain encoder, such as those of a masked language model, or not in
    safetensors are rewritten in float32.

    Raises UserError: no network, no such model, revision or file, a model that can't be loaded, or one whose own files
    contradict the config.
    """
    name = str(config.hub)
    if mirror and local_model(name, mirror) is None:
        raise UserError("the mirror has no such model", where=f"{mirror}/{name}", remedy="add it, or unset mirror")
    source, revision = resolve_model(name, mirror, "base.hub", config.revision)
    with named_by(name, source):
        modules = listed_modules(source)
    place = transformer_folder(source)
    for what, remedy in unusable_files(modules, place):
        raise UserError(what, where=name, remedy=remedy)
    with named_by(name, source):
        width = hidden_size(place)
        read_tokenizer(place / TOKENIZER)  # refused here, by its name, if it is damaged
        model = opened(source, finite=False)
    for what, remedy in contradictions(model, source, config):
        raise UserError(what, where=name, remedy=remedy)
    if config.max_length < (model.max_seq_length or 0):
        log.info("base: texts are cut at %d tokens instead of the model's %d", config.max_length, model.max_seq_length)
    made = {"source": name, "revision": revision, **write_encoder(encoder_of(model), place, folder)}
    write_tokenizer(model.tokenizer, place / TOKENIZER, folder, config.max_length)
    for file in OPTIONAL:
        if found := next((part / file for part in (place, source) if (part / file).is_file()), None):
            shutil.copyfile(found, folder / file)
    write_modules(folder, config, width, model.prompts, model.default_prompt_name)
    return made


def unusable_files(modules: Sequence[tuple[str, str]], place: Path) -> Iterator[tuple[str, str]]:
    """What rules the files out as a base before they are opened, with a remedy for each."""
    if modules and modules[0][0] != "Transformer":
        yield f"{MODULES_FILE} starts with {modules[0][0]}", "choose a base with a Transformer"
    for file in NEEDED:
        if not (place / file).is_file():
            yield f"the model has no {file}", "choose a base that has one"
    if not any(path for pattern in ("*.safetensors", TORCH_FILES) for path in place.glob(pattern)):
        yield "the model has no weights", "choose a base that has them"


def contradictions(model: SentenceTransformer, source: Path, config: BaseConfig) -> Iterator[tuple[str, str]]:
    """What the model does differently from a base of this config, with a remedy for each."""
    yield from other_modules(model, source, config)
    tokenizer: Any = model.tokenizer
    alone = read_tokenizer(transformer_folder(source) / TOKENIZER)
    if tokenizer.truncation_side != "right":
        yield "truncation_side is left: texts are cut at their start", "choose a base that cuts at the end"
    if tokenizer(PROBE)["input_ids"] != alone.encode(PROBE).ids:
        what = "tokenizer_config.json changes the tokens that tokenizer.json alone makes of a text"
        yield what, "save the tokenizer as PreTrainedTokenizerFast, or choose another base"
    if alone.token_to_id(tokenizer.pad_token or XLM_R_TOKENS["pad_token"]) is None:
        remedy = "name one of tokenizer.json's in tokenizer_config.json, or choose another base"
        yield "the tokenizer has no pad_token", remedy
    if (limit := model.max_seq_length or 0) < config.max_length:
        what = f"texts are cut at {limit} tokens, but base.max_length is {config.max_length}"
        yield what, f"set base.max_length to at most {limit}"
    for role, names in PROMPTS.items():
        prompts = [model.prompts[name] for name in names if model.prompts.get(name)]
        if prompts and (ours := config.prompts[role]) not in prompts:
            what = f"the model's prompt is {prompts[0]!r}, but base.prompts.{role} is {ours!r}"
            yield what, f"set base.prompts.{role} to the model's"
    if model.similarity_fn_name != "cosine" and not (model.similarity_fn_name == "dot" and config.normalize):
        yield f"similarity_fn_name is {model.similarity_fn_name}", "choose a base compared by cosine"
    if model.truncate_dim is not None:
        yield f"truncate_dim is {model.truncate_dim}", "remove it from config_sentence_transformers.json"


def other_modules(model: SentenceTransformer, source: Path, config: BaseConfig) -> Iterator[tuple[str, str]]:
    """Contradictions of `modules.json` and the settings of each module; none where the model lists no modules."""
    paths = [path for _, path in listed_modules(source)]
    if not paths:
        return
    if not model.module_kwargs:
        what = "model_type in config_sentence_transformers.json is not SentenceTransformer"
        yield what, "choose a model that is one"
    settings = Transformer.load_config(str(source), subfolder=paths[0], local_files_only=True)
    for key, value in settings.items():
        if key != "max_seq_length" and value and value != NEUTRAL.get(key):
            yield f"{key} in sentence_bert_config.json, {value}, can't be trained", "choose a base without it"
    further: list[Any] = list(model)[1:]
    wanted = [Pooling(hidden_size(transformer_folder(source)), config.pooling), *([Normalize()] * config.normalize)]
    for path, module in zip(paths[1:], further, strict=True):
        if type(module) not in (Pooling, Normalize):
            yield f"the module {path} ({type(module).__name__}) can't be trained", "choose a base without it"
    theirs, ours = (" and ".join(type(module).__name__ for module in each) for each in (further, wanted))
    if theirs != ours:
        what = f"after its Transformer the model has {theirs or 'nothing'}, but the base would have {ours}"
        yield what, "change base.normalize, or choose another base"
    for path, module, own in zip(paths[1:], further, wanted, strict=False):
        expected = own.get_config_dict()
        for key, value in module.get_config_dict().items():
            if value != expected[key]:
                what = f"{key} of the module {path} is {value}, but the base's would be {expected[key]}"
                yield what, "change base.pooling, or choose another base"


def write_encoder(encoder: PreTrainedModel, place: Path, folder: Path) -> dict[str, Any]:
    """Write weights and `config.json` as AutoModel names them; returns what was changed, for the manifest.

    Files that hold only tensors of the plain encoder are copied bit for bit. A pooler is kept only where there is one:
    transformers would initialise a missing one randomly.
    """
    stored, tensors = stored_names(place), encoder.state_dict()
    without_pooler = {name for name in tensors if not name.startswith("pooler.")}
    config = read_json(place / "config.json")
    plain = config | {"architectures": [type(encoder).__name__]}
    made: dict[str, Any] = {}
    if without_pooler <= stored <= tensors.keys() and any(place.glob("*.safetensors")):
        for file in weight_files(place):
            shutil.copyfile(file, folder / file.name)
        if not (folder / WEIGHTS_FILE).is_file():
            shutil.copyfile(place / INDEX_FILE, folder / INDEX_FILE)
    else:
        own = {name.removeprefix(f"{encoder.base_model_prefix}.") for name in stored}
        kept = {name: tensors[name] for name in tensors if name in without_pooler or name in own}
        with quiet():
            encoder.save_pretrained(folder, state_dict=dict(kept), save_original_format=False)
        left_out = sorted(own - kept.keys())
        made["weights"] = f"written as {type(encoder).__name__}"
        if left_out:
            made["weights"] += f", without {', '.join(left_out[:3])}" + (" …" if len(left_out) > 3 else "")
        log.info("base: weights %s", made["weights"])
        plain = {key: value for key, value in plain.items() if key != "torch_dtype"} | {"dtype": "float32"}
    if plain == config:
        shutil.copyfile(place / "config.json", folder / "config.json")
    else:
        write_json(folder / "config.json", plain)
    return made


def write_tokenizer(tokenizer: Any, file: Path, folder: Path, max_length: int) -> None:
    """Write the tokenizer of `file` without truncation and padding, and its settings with its own special tokens."""
    document, pieces = read_json(file), tokenizer.get_vocab()
    if document.get("truncation") or document.get("padding"):
        write_json(folder / TOKENIZER, document | {"truncation": None, "padding": None})
    else:
        shutil.copyfile(file, folder / TOKENIZER)
    tokens = {role: token for role, token in XLM_R_TOKENS.items() if token in pieces}
    tokens |= {role: token for role, token in tokenizer.special_tokens_map.items() if role in XLM_R_TOKENS}
    write_tokenizer_config(folder, max_length, tokens)


def hidden_size(folder: Path) -> int:
    """The width of the model's vectors; raises UserError on a config without it."""
    try:
        return int(encoder_config(folder)["hidden_size"])
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        where = str(folder / "config.json")
        raise UserError("no hidden_size in the model's config", where=where, remedy="choose another base") from error
