"""The scored models (the run's own, folders, Hub ids), identified by their folders' contents, and a folder's facts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.schema.config import Config
from pipeline.core.artefact import Manifest, file_sha256, files_under, json_sha256, read_json, read_manifest
from pipeline.core.console import log
from pipeline.core.errors import UserError
from pipeline.core.hub import hub_model
from pipeline.core.model_folder import (
    EXPORT_FOLDERS,
    HEADS,
    HEADS_RECORD,
    POOLING_KEYS,
    encoder_config,
    has_heads,
    resolve_model,
)

NOT_FINGERPRINTED = {"manifest.json", "certificate.json", "README.md", ".gitattributes", *HEADS, HEADS_RECORD}
WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class ScoredModel:
    """A model and its name in scores.csv."""

    name: str
    folder: Path
    fingerprint: str  # covers weights, tokenizer, pooling and prompts, not heads or paths
    artefact: Path | None = None  # the artefact it belongs to, if it is this run's
    revision: str | None = None  # the commit, if it is from the Hub


def scored_models(config: Config) -> list[ScoredModel]:
    """The chain's complete models, then `evaluation.models`, in order.

    Raises UserError if there are none, or one can't be found or holds no weights.
    """
    models = [model for name in config.evaluation.chain if (model := chain_model(config, name))]
    for wanted in config.evaluation.models:
        models.append(further_model(wanted, config.mirror, {model.name for model in models}))
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name}", where="config key evaluation.models", remedy="remove one")
    if not models:
        where = "config keys evaluation.chain and evaluation.models"
        remedy = "make one first (make merge), or name a folder or Hub id in evaluation.models"
        raise UserError("there is no model to score", where=where, remedy=remedy)
    return models


def final_stage(config: Config) -> str:
    """The stage with the run's final model: heads if they are configured and fitted to this merge, else merge."""
    names = ["merge", "heads"] if config.training.heads.kind == "frozen" else ["merge"]
    found = {name: read_manifest(config.folder(name)) for name in names}
    return final_of({name: manifest for name, manifest in found.items() if manifest})


def final_of(manifests: Mapping[str, Manifest]) -> str:
    """The stage with the run's final model, given its stages' manifests."""
    heads, merge = manifests.get("heads"), manifests.get("merge")
    fitted = heads and merge and heads.status == "complete" and heads.inputs.get("merge") == merge.fingerprint
    return "heads" if fitted else "merge"


def chain_model(config: Config, name: str) -> ScoredModel | None:
    """A model of this run, None if incomplete; merge means the final model, with the heads fitted to it."""
    made_by = final_stage(config) if name == "merge" else name
    stage, folder = config.folder(made_by), config.model_folder(made_by)
    manifest = read_manifest(stage)
    if manifest is None or manifest.status != "complete":
        log.warning("evaluate: %s is %s and is skipped", name, manifest.status if manifest else "not built yet")
        return None
    of_stage = {stage / path: entry["sha256"] for path, entry in manifest.outputs.items()}
    inside = {path.relative_to(folder).as_posix(): own for path, own in of_stage.items() if path.is_relative_to(folder)}
    digests = {path: own for path, own in inside.items() if is_of_the_model(path)}
    return ScoredModel(name, folder, json_sha256(digests), stage)


def further_model(wanted: str, mirror: str | None, taken: Collection[str] = ()) -> ScoredModel:
    """A folder, or a Hub id with an optional `@<revision>`; the mirror is tried before the Hub.

    A folder's name is the shortest end of its path not in `taken`: another run's merge is `<run>/merge`.
    """
    on_hub = hub_model(wanted)
    if on_hub and (wanted.startswith((".", "/", "~")) or wanted.count("/") > 1):
        raise UserError("there is no such model folder", where=wanted, remedy="correct evaluation.models")
    folder, commit = resolve_model(wanted, mirror, "evaluation.models")
    if on_hub:
        return ScoredModel(on_hub.hub, folder, folder_fingerprint(folder), revision=commit)
    parts = folder.resolve().parts[1:]
    parts = parts[:-1] if parts[-1] == "model" and len(parts) > 1 else parts
    ends = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return ScoredModel(next((end for end in ends if end not in taken), ends[-1]), folder, folder_fingerprint(folder))


def heads_fingerprint(folders: list[Path]) -> str | None:
    """sha256 of the first heads found in `folders`, or None if there are none."""
    found = next(filter(has_heads, folders), None)
    return json_sha256({name: file_sha256(found / name) for name in HEADS}) if found else None


def folder_fingerprint(folder: Path) -> str:
    """sha256 of a model folder's contents; raises UserError if it holds no weights."""
    if not any(file for pattern in WEIGHT_FILES for file in folder.rglob(pattern)):
        remedy = "give a sentence-transformers or transformers model folder"
        raise UserError("the model folder holds no weights (*.safetensors)", where=str(folder), remedy=remedy)
    paths = {path.relative_to(folder).as_posix(): path for path in files_under(folder)}
    return json_sha256({name: file_sha256(path) for name, path in paths.items() if is_of_the_model(name)})


def is_of_the_model(path: str) -> bool:
    """Whether a file of a model folder can affect its dense embeddings."""
    parts = Path(path).parts
    return parts[-1] not in NOT_FINGERPRINTED and parts[0] not in ("vocabulary", "imgs", *EXPORT_FOLDERS)


@dataclass(frozen=True)
class ModelFacts:
    """Size, pooling and prompts of a model folder."""

    loader: str  # the class of transformers that loads its encoder: AutoModel, for which T5's would lack a decoder
    dimension: int  # of an embedding
    layers: int
    vocabulary: int
    pooling: str  # cls, mean or lasttoken
    normalize: bool
    max_length: int  # tokens
    prompts: dict[str, str]
    first_token: str  # of every text, such as <s>
    heads: bool  # whether bge-m3's sparse and multi-vector heads are next to the weights


def read_model_facts(folder: Path) -> ModelFacts:
    """Facts about a folder written by a stage; raises OSError if one of its files is missing."""
    config = encoder_config(folder)
    modules = [entry["type"].rpartition(".")[2] for entry in read_json(folder / "modules.json")]
    pooling = read_json(folder / "1_Pooling" / "config.json")
    settings = read_json(folder / "config_sentence_transformers.json")
    special = read_json(folder / "tokenizer_config.json")
    limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    kind = str((config.get("architectures") or [""])[0])
    return ModelFacts(
        loader=kind if kind.endswith("EncoderModel") else "AutoModel",
        dimension=config["hidden_size"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        pooling=next(
            (mode for mode, key in POOLING_KEYS.items() if pooling.get(key) or pooling.get("pooling_mode") == mode),
            "mean",
        ),
        normalize="Normalize" in modules,
        max_length=limit or config["max_position_embeddings"],
        prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text},
        first_token=special.get("cls_token") or special.get("bos_token") or "",
        heads=has_heads(folder),
    )
