"""A model as mteb sees it: named by its contents, checked for broken embeddings."""

from typing import Any

import numpy as np
from mteb.models.sentence_transformer_wrapper import (
    MultiVectorWrapper,
    SentenceTransformerEncoderWrapper,
    SparseEncoderWrapper,
)

from evaluation.embedding import Embedder
from evaluation.heads import Heads, multi_vector_encoder, sparse_encoder
from pipeline.core.console import quiet
from pipeline.core.errors import UserError


class CheckedEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper, with the fingerprint as the model's revision.

    mteb calls every local model by one name, and so would take one checkpoint's cached scores for another's.
    """

    def __init__(self, embedder: Embedder, fingerprint: str) -> None:
        with quiet():
            super().__init__(embedder.model)
        self.mteb_model_meta = named_meta(self.mteb_model_meta, fingerprint)
        self.folder = embedder.folder

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        """Embeddings [texts, width]; raises UserError where one is not finite."""
        embeddings = super().encode(inputs, **kwargs)
        if not np.isfinite(np.asarray(embeddings)).all():
            raise UserError(
                "the model's embeddings hold NaN or infinity",
                where=str(self.folder),
                remedy="its weights are broken, or overflow in this precision",
            )
        return embeddings


def sparse_model(embedder: Embedder, heads: Heads, fingerprint: str) -> SparseEncoderWrapper:
    """The model's sparse weights for mteb."""
    with quiet():
        wrapped = SparseEncoderWrapper(sparse_encoder(embedder, heads))
    wrapped.mteb_model_meta = named_meta(wrapped.mteb_model_meta, f"{fingerprint}-sparse-{heads.fingerprint[:16]}")
    return wrapped


def multi_vector_model(embedder: Embedder, heads: Heads, fingerprint: str) -> MultiVectorWrapper:
    """The model's token vectors for mteb, which sums MaxSim in float32."""
    with quiet():
        wrapped = MultiVectorWrapper(multi_vector_encoder(embedder, heads))
    revision = f"{fingerprint}-multi_vector-{heads.fingerprint[:16]}"
    wrapped.mteb_model_meta = named_meta(wrapped.mteb_model_meta, revision)
    return wrapped


def named_meta(meta: Any, fingerprint: str) -> Any:
    """mteb's description of a model with a name and revision that follow from its contents."""
    return meta.model_copy(update={"name": f"local/{fingerprint[:16]}", "revision": fingerprint})
