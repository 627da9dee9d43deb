"""A model folder as evaluation uses it: its own embeddings, and what encodechka takes from the last layer."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.console import quiet
from pipeline.core.embedding import QUERY, Embedder, EmbeddingCache, Vectors, require_finite
from pipeline.core.errors import UserError
from pipeline.core.model_folder import transformer_folder
from pipeline.core.models import load_folder, most_tokens, stored_names

LEADERBOARD_TOKENS = 128  # encodechka's reference code truncates texts to this
UNLIMITED_TOKENS = 512  # of texts whose words are tagged by a model without a table of positions, such as T5's encoder


class Encoder(Embedder):
    """A loaded model folder that caches its embeddings."""

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "fp32",
        device: str | None = None,
        token_budget: int | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        """Load the model in `folder`; raises UserError if that fails."""
        self.folder = folder
        with quiet():
            model = load_folder(folder, device).eval()
        if precision == "bf16":
            model[0].to(torch.bfloat16)  # not shared: no autocast, which would keep float32 weights too
        super().__init__(model, token_budget=token_budget, cache=cache or EmbeddingCache())

    def sentences(self, texts: Sequence[str], role: str = QUERY) -> np.ndarray:
        """The model's own embeddings [texts, width], float32, with the prompt of `role`."""
        return self.embed(texts, self.prompt(role))

    @torch.inference_mode()
    def variants(self, texts: Sequence[str], max_tokens: int = LEADERBOARD_TOKENS) -> Vectors:
        """Pooled variants of the last hidden state, without a prompt, each [texts, hidden], float32.

        `cls` and `mean` (over the attention mask), and `pooler` if the checkpoint has weights for one, since
        transformers would otherwise initialise it randomly.
        """
        names = ["cls", "mean"] + (["pooler"] if self.has_pooler else [])

        def make(missing: list[str]) -> Vectors:
            ids = self.tokenise(missing, max_length=max_tokens)
            made = {name: np.empty((len(missing), self.config.hidden_size), np.float32) for name in names}
            encoder: Any = self.model[0].model
            for batch, features in self.token_batches(ids):
                hidden, mask = features["token_embeddings"], features["attention_mask"].unsqueeze(-1)
                made["cls"][batch] = hidden[:, 0].cpu().numpy()
                made["mean"][batch] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
                if "pooler" in made:
                    made["pooler"][batch] = encoder.pooler(hidden.to(encoder.dtype)).float().cpu().numpy()
            return made

        return self.lookup(texts, f"variants {max_tokens} {names}", names, make)

    @torch.inference_mode()
    def words(self, texts: Sequence[list[str]]) -> list[np.ndarray]:
        """Word vectors, one array [words, hidden] per text: the mean of a word's sub-tokens in the last layer.

        Texts are truncated at the tokenizer's limit (at most the model's positions); words without sub-tokens, or
        beyond the limit, get a zero vector.
        """
        positions = most_tokens(self.model) or getattr(self.config, "max_position_embeddings", UNLIMITED_TOKENS)
        limit = min(self.tokenizer.model_max_length, positions)
        encoded = self.tokenizer(list(texts), is_split_into_words=True, truncation=True, max_length=limit)
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for batch, features in self.token_batches(encoded["input_ids"]):
            hidden = features["token_embeddings"].cpu()
            for row, index in enumerate(batch):
                words = encoded.word_ids(index)
                found[index] = _mean_by_word(hidden[row, : len(words)], words, len(texts[index]))
        require_finite((vectors for vectors in found if len(vectors)), self.model)
        return found

    @property
    def config(self) -> Any:
        """transformers' config of the encoder; raises UserError if there is none."""
        encoder: Any = getattr(self.model[0], "model", None)
        if encoder is None:
            what = f"{type(self.model[0]).__name__} has no layers, whose token embeddings this suite needs"
            remedy = "score it on other suites, or with protocol: model"
            raise UserError(what, where=str(self.folder), remedy=remedy)
        return encoder.config

    @cached_property
    def has_pooler(self) -> bool:
        """Whether the model has a pooler, and the checkpoint weights for it; a classifier's own is not the model's."""
        stored = any("pooler.dense.weight" in name for name in stored_names(transformer_folder(self.folder)))
        encoder = getattr(self.model[0], "model", None)
        return stored and getattr(encoder, "pooler", None) is not None


def _mean_by_word(hidden: torch.Tensor, words: list[int | None], count: int) -> np.ndarray:
    """Mean of the rows of `hidden` [tokens, hidden] that belong to each of `count` words."""
    kept = [token for token, word in enumerate(words) if word is not None]
    index = torch.tensor([words[token] for token in kept], dtype=torch.long)
    sums = torch.zeros(count, hidden.shape[1]).index_add_(0, index, hidden[kept])
    sizes = torch.bincount(index, minlength=count).clamp(min=1)
    return (sums / sizes.unsqueeze(1)).numpy()
