"""Auxiliary models that mine, guide or teach: their text vectors, cached across runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from configs.schema.config import Config
from configs.schema.data import OWN_MODELS
from data.fingerprints import model_state
from pipeline.core.artefact import json_sha256, read_manifest
from pipeline.core.console import log, quiet
from pipeline.core.device import training_precision
from pipeline.core.embedding import Embedder, EmbeddingCache
from pipeline.core.hub import local_model
from pipeline.core.model_folder import resolve_model
from pipeline.core.models import load_folder


@dataclass(frozen=True)
class AuxiliaryModel:
    """A loaded model, in the precision of training."""

    model: SentenceTransformer
    revision: str  # its origin: an artefact, a commit, a mirror, a folder
    kept: Path  # the cache of its vectors, for all purposes
    precision: str
    token_budget: int | None

    def embed(self, texts: Sequence[str], prompt: str, max_length: int) -> np.ndarray:
        """Vectors [texts, width] of texts cut at `max_length` tokens, cached or computed; none stays in memory."""
        cache = EmbeddingCache(self.kept)
        return Embedder(self.model, max_length, self.token_budget, self.precision, cache).embed(texts, prompt)


def open_auxiliary_model(config: Config, wanted: str, key: str) -> AuxiliaryModel:
    """One of the run's `OWN_MODELS`, a folder, or a Hub id with an optional `@<revision>`; its tokenizer may differ.

    Raises UserError, naming the config `key`, where it isn't available.
    """
    if wanted in OWN_MODELS:
        manifest = read_manifest(config.folder(wanted))
        assert manifest is not None  # an input of the stage
        folder, contents = config.model_folder(wanted), manifest.fingerprint
        revision = f"this run's, {contents[:12]}"
    else:
        folder, revision = resolve_model(wanted, config.mirror, key)
        is_here = local_model(wanted, config.mirror) is not None
        contents = json_sha256(model_state(wanted, config.mirror)) if is_here else revision
    precision = training_precision(config.precision)
    with quiet():
        model = load_folder(folder, remedy=f"fix {key}").eval()
    log.info("%s: %s (%s)", key, wanted, revision)
    kept = Path(config.runs, "cache", "embeddings", f"{contents}-{precision}")
    return AuxiliaryModel(model, revision, kept, precision, config.token_budget)
