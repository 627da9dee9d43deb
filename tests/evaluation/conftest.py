"""Small random models in the sentence-transformers layout, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.encoder import Encoder
from tests.support.small_bases import tiny_model

PROMPTS = {"query": "query: ", "document": "passage: "}
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Makes a model folder; `seed` changes its weights, further arguments its config."""

    def make(seed: int = 1, folder: Path | None = None, **settings: object) -> Path:
        base = {"hidden": 32, "vocabulary": 1500, "prompts": PROMPTS, "max_length": 128, **settings}
        return tiny_model(folder or tmp_path_factory.mktemp("model"), seed, **base)

    return make


@pytest.fixture(scope="session")
def model_folder(make_model: MakeModel) -> Path:
    """One small model with prompts, mean pooling and normalisation."""
    return make_model(seed=1, pooling="mean")


@pytest.fixture(scope="session")
def embedder(model_folder: Path) -> Encoder:
    """The small model, loaded."""
    return Encoder(model_folder, device="cpu", token_budget=256)
