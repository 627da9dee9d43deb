"""Checks that model folders can be merged, and writes the merged folder with the first model's other files."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merging.interpolation import interpolate, require_same_tensors
from pipeline.core.artefact import MANIFEST, file_sha256, read_json
from pipeline.core.errors import UserError, first_line
from pipeline.core.model_folder import (
    HEADS,
    MODULES_FILE,
    PROBE,
    RAISED_BY_FILES,
    listed_modules,
    read_tokenizer,
    write_dtype,
)
from pipeline.core.safetensors_io import SafetensorsReader

NOT_CARRIED = {MANIFEST, "certificate.json", "README.md"}  # they describe the base, not the merged model
WEIGHT_FILES = ("*.safetensors*", "pytorch_model*")  # including shards and their indices; torch's own files are refused
VOCABULARY = "vocabulary"  # the map from the base's token ids, which sparse vectors need
# May differ in config.json; sentence-transformers saves `use_cache`, which means nothing to an encoder.
PROVENANCE = {"architectures", "transformers_version", "torch_dtype", "dtype", "use_cache"}


def require_compatible(models: Mapping[str, Path], heads_differ: bool = False) -> None:
    """Raise UserError unless the folders differ only in the values of their weights.

    Compared with the first model: vocabulary and tokenizer, transformer config, the sentence-transformers modules
    and their settings, prompts, the heads where a model has them, and the names and shapes of all tensors. With
    `heads_differ` the heads, which are merged too, may differ.
    """
    (base_name, base), *others = models.items()
    for name, folder in models.items():
        if not listed_modules(folder):
            what = f"{name} is not a sentence-transformers model: {MODULES_FILE} is missing"
            raise UserError(what, where=str(folder), remedy=f"make {name} again")
    for name, folder in others:
        _require_same_tokenizer(base_name, base, name, folder)
        for what, read in (("transformer config", _config), ("modules", _modules), ("prompts", _prompts)):
            ours, theirs = (_readable(read, what, each) for each in (base, folder))
            if ours != theirs:
                key = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
                detail = f"{key} is {theirs.get(key)} instead of {ours.get(key)}"
                problem = f"the {what} of {name} and {base_name} differ: {detail}"
                remedy = "merge only models trained from the same init model"
                raise UserError(problem, where=str(folder), remedy=remedy)
        if not heads_differ:
            _require_same_heads(base_name, base, name, folder)
    for part in weight_folders(base):
        opened = {name: SafetensorsReader(folder / part) for name, folder in models.items()}
        require_same_tensors(opened)


def _readable(read: Callable[[Path], dict[str, Any]], what: str, folder: Path) -> dict[str, Any]:
    try:
        return read(folder)
    except RAISED_BY_FILES as error:
        what = f"can't read the {what}: {first_line(error)}"
        raise UserError(what, where=str(folder), remedy="make the model again") from error


def write_model(models: Mapping[str, Path], weights: Mapping[str, float], target: Path, dtype: str) -> None:
    """Write the sentence-transformers folder `target`: merged weights, everything else from the first of `models`."""
    base = next(iter(models.values()))
    carry_over(base, target, dtype)
    for part in weight_folders(base):
        interpolate({name: folder / part for name, folder in models.items()}, weights, target / part, dtype)


def carry_over(base: Path, target: Path, dtype: str) -> None:
    """Copy the model `base` except its weights to the folder `target`; the config gets the merged `dtype`."""
    target.mkdir(parents=True, exist_ok=True)
    left_out = shutil.ignore_patterns(*WEIGHT_FILES)
    skipped = NOT_CARRIED | left_out(str(base), [path.name for path in base.iterdir()])
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name not in skipped:
            shutil.copyfile(path, target / path.name)
    for part in {*(path for _, path in listed_modules(base)), VOCABULARY} - {""}:
        if (base / part).is_dir():
            shutil.copytree(base / part, target / part, ignore=left_out)
    write_dtype(target, dtype)


def weight_folders(base: Path) -> list[str]:
    """The parts of a model folder with weights: its root, and modules such as Dense."""
    parts = [path for _, path in listed_modules(base)]
    return [part for part in parts if any(path for name in WEIGHT_FILES for path in (base / part).glob(name))]


def _require_same_tokenizer(base_name: str, base: Path, name: str, folder: Path) -> None:
    ours, theirs = (read_tokenizer(each / "tokenizer.json") for each in (base, folder))
    remedy = "use the init model that the others were trained from, never its larger base"
    sizes = ours.get_vocab_size(), theirs.get_vocab_size()
    if sizes[0] != sizes[1]:
        what = f"different vocabularies: {sizes[0]} pieces in {base_name}, {sizes[1]} in {name}"
        raise UserError(f"{what}; the base must be the init model", where=str(folder), remedy=remedy)
    if ours.get_vocab() != theirs.get_vocab():
        what = f"different vocabularies: {base_name} and {name} give the same pieces different ids"
        raise UserError(f"{what}; the base must be the init model", where=str(folder), remedy=remedy)
    if _rules(ours) != _rules(theirs) or ours.encode(PROBE).ids != theirs.encode(PROBE).ids:
        raise UserError(f"the tokenizers of {base_name} and {name} differ", where=str(folder), remedy=remedy)


def _rules(tokenizer: Any) -> list[Any]:
    """Scores, normaliser and pre-tokeniser as the library serialises them, whatever the file's own form."""
    parts = json.loads(tokenizer.to_str())
    return [parts["model"], parts["normalizer"], parts["pre_tokenizer"]]


def _config(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig  # imported here: writing a merge needs neither it nor its memory

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    return {key: value for key, value in config.items() if key not in PROVENANCE and not key.startswith("_")}


def _modules(folder: Path) -> dict[str, Any]:
    """Class and settings of every module, as the library reads them from old and new files."""
    from sentence_transformers.util import import_from_string

    modules = {}
    for number, entry in enumerate(read_json(folder / MODULES_FILE)):
        kind = entry["type"].rsplit(".", 1)[-1]
        settings = {}
        if number and (folder / entry["path"]).is_dir() and entry["type"].startswith("sentence_transformers."):
            module: Any = import_from_string(entry["type"])
            settings = module.load(str(folder / entry["path"])).get_config_dict()
        modules[f"module {number}"] = {"class": kind, **settings}
    return modules


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    prompts = {key: value for key, value in (config.get("prompts") or {}).items() if value}
    return {"prompts": prompts, "default": config.get("default_prompt_name")}


def _require_same_heads(base_name: str, base: Path, name: str, folder: Path) -> None:
    """A model may lack the heads, which were not trained with it; if it has them, they must equal the base's."""
    for head in HEADS:
        if not (folder / head).is_file():
            continue
        if not (base / head).is_file() or not _same_numbers(base / head, folder / head):
            what = f"the head {head} of {name} is not that of {base_name}"
            raise UserError(what, where=str(folder), remedy="merge heads too, with heads=joint, or restore it")


def _same_numbers(one: Path, other: Path) -> bool:
    if file_sha256(one) == file_sha256(other):
        return True
    read = partial(torch.load, map_location="cpu", weights_only=True)
    ours, theirs = (_readable(read, f"head {path.name}", path) for path in (one, other))
    return ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
