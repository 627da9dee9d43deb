"""A base model from the Hub, or from a mirror of it."""

import json
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import save_file

from configs.schema.init import BaseConfig
from pipeline.core.checkpoint import INDEX, SHARDS, WEIGHTS
from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line
from pipeline.core.hub import Revision, hub_errors, readable_revision
from pipeline.core.models import HEADS, RAISED_BY_FILES
from training.bases.folder import write_modules, write_tokenizer_config

TORCH_WEIGHTS = "pytorch_model.bin"
NEEDED = ("config.json", "tokenizer.json")
OPTIONAL = ("sentencepiece.bpe.model", *HEADS)


def make_from_hub(config: BaseConfig, folder: Path, mirror: str | None) -> dict[str, Any]:
    """Write the base into `folder`: its files as they are, with this config's modules and tokenizer settings.

    Weights in torch's own file become safetensors, the one format that the stages after this know.

    Raises:
        UserError: no network, no such model, revision or file, or a model without weights or tokenizer.json.
    """
    assert config.hub is not None
    commit = copy_mirror(config, folder, mirror) if mirror else download(config, folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError(f"the model has no {name}", where=config.hub, remedy="choose a base that has one")
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX, TORCH_WEIGHTS)):
        raise UserError("the model has no weights", where=config.hub, remedy="choose a base that has them")
    made = {"source": config.hub, "revision": commit}
    if (folder / TORCH_WEIGHTS).is_file():
        torch_to_safetensors(folder, config.hub)
        made["weights"] = f"converted from {TORCH_WEIGHTS}"
    write_tokenizer_config(folder, config.max_length)
    write_modules(folder, config, hidden_size(folder))
    return made


def download(config: BaseConfig, folder: Path) -> str:
    """Download the model's files into `folder`; returns the commit that the revision stands for."""
    assert config.hub is not None
    where = f"{config.hub} at {config.revision}"
    with hub_errors("base", where, "base.hub and base.revision"):
        revision = readable_revision(Revision("model", config.hub, config.revision))
        info = HfApi().model_info(config.hub, revision=revision)
        assert info.sha is not None
        present = {file.rfilename for file in info.siblings or []}
        snapshot_download(
            config.hub,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=[*NEEDED, *OPTIONAL, *chosen_weights(present)],
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return info.sha


def copy_mirror(config: BaseConfig, folder: Path, mirror: str | None) -> str:
    """Copy the model's files from `<mirror>/<hub id>`; returns where the weights came from, in place of a commit."""
    source = Path(mirror or "") / str(config.hub)
    if not source.is_dir():
        raise UserError("the mirror has no such model", where=str(source), remedy="add it, or unset mirror")
    present = {path.name for path in source.iterdir() if path.is_file()}
    for name in {*NEEDED, *OPTIONAL, *chosen_weights(present)} & present:
        shutil.copyfile(source / name, folder / name)
    for shard in source.glob(SHARDS) if INDEX in chosen_weights(present) else ():
        shutil.copyfile(shard, folder / shard.name)
    return f"mirror {config.revision}"


def chosen_weights(present: set[str]) -> list[str]:
    """File patterns of the weights: safetensors if the model has them, else torch's file."""
    if WEIGHTS in present:
        return [WEIGHTS]
    return [INDEX, SHARDS] if INDEX in present else [TORCH_WEIGHTS]


def torch_to_safetensors(folder: Path, source: str) -> None:
    """Put `model.safetensors` in the place of `pytorch_model.bin`, which is mapped and holds nothing but tensors.

    Tensors that share memory are stored one by one, as safetensors knows no sharing.

    Raises:
        UserError: the file of the model `source` is damaged, of torch's old format, or holds more than named tensors.
    """
    path, remedy = folder / TORCH_WEIGHTS, "save the model as safetensors, or choose another base"
    log.info("converting %s to safetensors", TORCH_WEIGHTS)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors, storages = {}, set()
        for name, tensor in content.items():
            plain = tensor.contiguous()
            storage = plain.untyped_storage().data_ptr()
            tensors[name] = plain.clone() if storage in storages else plain
            storages.add(storage)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except RAISED_BY_FILES as error:
        reason = (
            "it holds more than tensors" if isinstance(error, UnpicklingError) else first_line(error).partition(". ")[0]
        )
        raise UserError(f"{TORCH_WEIGHTS} can't be loaded: {reason}", where=source, remedy=remedy) from error
    path.unlink()


def hidden_size(folder: Path) -> int:
    """The width of the model's vectors; raises UserError on a config that doesn't say it."""
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        where = str(folder / "config.json")
        raise UserError("no hidden_size in the model's config", where=where, remedy="choose another base") from error
