"""Small real models and a data artefact: an init model, two nominally trained sides, dev and guard rows."""

import shutil
from pathlib import Path
from typing import Any

import polars
import pytest

from tests.support.small_bases import tiny_model

WORDS = ["кот", "пёс", "дом", "лес", "река", "море", "снег", "дождь", "хлеб", "соль"]
WORDS += ["книга", "письмо", "город", "поле", "гора", "мост", "окно", "дверь", "стол", "лампа"]
COLOURS = ["белый", "чёрный", "синий", "старый", "новый", "тихий", "тёплый", "быстрый"]
MODELS = ("init", "symmetric", "asymmetric")


def make_model(folder: Path, pooling: str = "cls", vocabulary: int = 400, **base: Any) -> Path:
    """A random two-layer XLM-RoBERTa as a sentence-transformers folder."""
    return tiny_model(folder, vocabulary=vocabulary, hidden=32, max_length=64, pooling=pooling, **base)


def perturb(source: Path, target: Path, seed: int, scale: float = 0.05, dtype: str = "float32") -> Path:
    """A copy of a model folder with normal noise on its weights, like a trained side."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    random_numbers = torch.Generator().manual_seed(seed)
    noisy = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        noise = scale * torch.randn(tensor.shape, generator=random_numbers)
        noisy[name] = (tensor.float() + noise).to(getattr(torch, dtype))
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


def pair_rows(offset: int, count: int, negatives: int = 0) -> polars.DataFrame:
    """Rows "colour word" – "word colour", different for each offset."""
    rows = []
    for number in range(offset, offset + count):
        colour, word = COLOURS[number % 8], WORDS[number // 8 % 20]
        others = [f"{WORDS[(number // 8 + 1 + shift) % 20]} {colour} {offset}" for shift in range(negatives)]
        rows.append((f"{colour} {word} {number}", f"{word} {colour} {number}", others))
    schema = {"anchor": polars.String, "positive": polars.String, "negatives": polars.List(polars.String)}
    return polars.DataFrame(rows, schema=schema, orient="row")


def make_data(folder: Path) -> Path:
    """The data artefact's files that the merge stage reads."""
    frames = {
        "symmetric/pairs.parquet": pair_rows(0, 40),
        "asymmetric/answers.parquet": pair_rows(40, 40),
        "dev/pairs.parquet": pair_rows(80, 20, negatives=2),
        "dev/answers.parquet": pair_rows(100, 20, negatives=1),
        "heldout/guard_one.parquet": pair_rows(120, 20),
        "heldout/guard_two.parquet": pair_rows(140, 20),
    }
    for name, frame in frames.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / name)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CLS models without prompts, by name: the base and two others near it. Copy before changing a file."""
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "init")
    return {"init": base} | {name: perturb(base, folder / name, seed) for seed, name in enumerate(MODELS[1:], start=1)}


@pytest.fixture
def copies(models: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of the models that a test may change."""
    return {name: Path(shutil.copytree(folder, tmp_path / "models" / name)) for name, folder in models.items()}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data artefact's folder. Copy before changing a file."""
    return make_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def run_folder(copies: dict[str, Path], data: Path, tmp_path: Path) -> Path:
    """A run with all stages before merge complete."""
    from pipeline.core.artefact import Manifest

    run = tmp_path / "runs" / "test"
    shutil.copytree(copies["init"], run / "init")
    shutil.copytree(data, run / "data")
    for side in MODELS[1:]:
        shutil.copytree(copies[side], run / side / "model")
    for stage in (*MODELS, "data"):
        Manifest(stage, "complete", f"fingerprint of {stage}", {}, {}).write(run / stage)
    return run
