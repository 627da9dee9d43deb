"""A base model from the Hub, or from a mirror of it."""

import json
import shutil
from pathlib import Path
from typing import Any

from configs.schema.init import BaseConfig
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, hub_errors, readable_revision
from training.bases.folder import write_modules, write_tokenizer_config

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
NEEDED = ("config.json", "tokenizer.json")
OPTIONAL = ("sentencepiece.bpe.model", "sparse_linear.pt", "colbert_linear.pt")


def make_from_hub(config: BaseConfig, folder: Path, mirror: str | None) -> dict[str, Any]:
    """Write the base into `folder`: its files as they are, with this config's modules and tokenizer settings.

    Raises:
        UserError: no network, no such model, revision or file, or a model without weights or tokenizer.json.
    """
    assert config.hub is not None
    commit = copy_mirror(config, folder, mirror) if mirror else download(config, folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError(f"the model has no {name}", where=config.hub, remedy="choose a base that has one")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError("the model has no weights", where=config.hub, remedy="choose a base that has them")
    write_tokenizer_config(folder, config.max_length)
    write_modules(folder, config, hidden_size(folder))
    return {"source": config.hub, "revision": commit}


def download(config: BaseConfig, folder: Path) -> str:
    """Download the model's files into `folder`; returns the commit that the revision stands for."""
    from huggingface_hub import HfApi, snapshot_download

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
    for shard in source.glob("model-*.safetensors") if WEIGHTS[1] in chosen_weights(present) else ():
        shutil.copyfile(shard, folder / shard.name)
    return f"mirror {config.revision}"


def chosen_weights(present: set[str]) -> list[str]:
    """File patterns of the weights: safetensors if the model has them, else torch's file."""
    if WEIGHTS[0] in present:
        return [WEIGHTS[0]]
    if WEIGHTS[1] in present:
        return [WEIGHTS[1], "model-*.safetensors"]
    return [WEIGHTS[2]]


def hidden_size(folder: Path) -> int:
    """The width of the model's vectors; raises UserError on a config that doesn't say it."""
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        where = str(folder / "config.json")
        raise UserError("no hidden_size in the model's config", where=where, remedy="choose another base") from error
