"""The files around a base's weights and vocabulary: tokenizer settings and sentence-transformers modules."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from configs.schema.init import BaseConfig
from pipeline.core.artefact import write_json
from pipeline.core.console import quiet
from pipeline.core.errors import UserError
from pipeline.core.model_folder import POOLING_KEYS
from pipeline.core.models import load_folder

XLM_R_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
MODULES = ("Transformer", "Pooling", "Normalize")  # by their old paths, which every version of the library knows


@contextmanager
def named_by(source: str, folder: Path) -> Iterator[None]:
    """Re-raise a UserError about a scratch or cache folder as one about the `source` that the user knows."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what.replace(f"{folder}/", ""), where=source, remedy=error.remedy) from error


def opened(folder: Path, **options: Any) -> SentenceTransformer:
    """The folder's model on the CPU; `options` and errors are those of `load_folder`."""
    with quiet():
        return load_folder(folder, "cpu", "get its files again, or choose another base", **options)


def write_modules(
    folder: Path,
    config: BaseConfig,
    width: int,
    own: Mapping[str, str | None] | None = None,
    own_default: str | None = None,
) -> None:
    """Write what sentence-transformers reads: modules, pooling, normalisation, length and prompts.

    Without these files the library would silently fall back to mean pooling. The model's `own` prompts are kept in
    addition to the config's, and with them its own default.
    """
    names = MODULES if config.normalize else MODULES[:2]
    paths = [f"{place}_{name}" if place else "" for place, name in enumerate(names)]
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    if config.normalize:
        ends = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / "2_Normalize/config.json", ends)
    written = {"cls", "mean", config.pooling}
    pooling = {key: mode == config.pooling for mode, key in POOLING_KEYS.items() if mode in written}
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **pooling})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    own = {name: prompt for name, prompt in (own or {}).items() if prompt}
    default = own_default if own else "query" if config.prompts["query"] else None
    settings = {"prompts": {**own, **config.prompts}, "default_prompt_name": default}
    write_json(folder / "config_sentence_transformers.json", {**settings, "similarity_fn_name": "cosine"})


def write_tokenizer_config(folder: Path, max_length: int, special: Mapping[str, str] = XLM_R_TOKENS) -> None:
    """Write tokenizer settings with which transformers loads `tokenizer.json` unchanged.

    With an XLM-R tokenizer class, transformers 5 would rebuild it with another normaliser and pre-tokeniser; as
    `PreTrainedTokenizerFast` it is loaded unchanged by versions 4 and 5. `special` are the special tokens by role.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **special}
    names = ["input_ids", "attention_mask"]  # one segment only: no token_type_ids, as with XLM-R
    write_json(folder / "tokenizer_config.json", {**settings, "model_input_names": names})
