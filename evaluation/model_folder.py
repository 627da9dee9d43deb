"""What a sentence-transformers folder says about its model, without loading it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADS = ("sparse_linear.pt", "colbert_linear.pt")


@dataclass(frozen=True)
class ModelFacts:
    """Size, pooling and prompts of a model folder."""

    architecture: str  # model_type of transformers
    dimension: int  # of an embedding
    layers: int
    vocabulary: int
    pooling: str  # cls or mean
    normalize: bool
    max_length: int  # tokens
    prompts: dict[str, str]
    heads: bool  # whether bge-m3's sparse and multi-vector heads lie beside the weights


def read_model_facts(folder: Path) -> ModelFacts:
    """Facts of a folder as the stages write it; raises OSError where a file of it is missing."""
    config = _json(folder / "config.json")
    modules = [entry["type"].rpartition(".")[2] for entry in _json(folder / "modules.json")]
    pooling = _json(folder / "1_Pooling" / "config.json")
    settings = _json(folder / "config_sentence_transformers.json")
    limit = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return ModelFacts(
        architecture=config["model_type"],
        dimension=config["hidden_size"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        pooling="cls" if pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls" else "mean",
        normalize="Normalize" in modules,
        max_length=limit or config["max_position_embeddings"],
        prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text},
        heads=all((folder / name).is_file() for name in HEADS),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
