"""Embeddings of a model: every distinct text once, in batches of similar length; kept for the next run where asked."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open

from pipeline.core.artefact import replacing
from pipeline.core.console import progress, quiet
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder, most_tokens

LEADERBOARD_TOKENS = 128  # at which encodechka's reference code cuts texts
CPU_TOKENS, GPU_TOKENS = 512, 65536  # padded tokens in a pass; on a CPU activations should stay in its cache
VISIBLE_BATCHES = 64  # from here on a bar is shown
QUERY, DOCUMENT = "query", "document"  # roles of a text
PROMPTS = {QUERY: ("query",), DOCUMENT: ("document", "passage", "corpus")}  # role -> what its prompt may be called

Features = dict[str, torch.Tensor]
Pool = Callable[[Features], dict[str, torch.Tensor]]


class EmbeddingCache:
    """Vectors by kind and text. `folder` belongs to one model fingerprint and precision; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: dict[str, dict[str, int]] = {}  # kind -> text's digest -> row
        self._vectors: dict[str, dict[str, list[np.ndarray]]] = {}  # kind -> name -> blocks of rows

    def missing(self, kind: str, texts: Sequence[str]) -> list[str]:
        """The distinct texts of `texts` that have no vectors of this kind, in order."""
        if kind not in self._rows:
            self._load(kind)
        known = self._rows[kind]
        return [text for text in dict.fromkeys(texts) if digest(text) not in known]

    def add(self, kind: str, texts: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
        """Keep vectors [texts, width], by name, of distinct texts that were missing."""
        keys = [digest(text) for text in texts]
        self._keep(kind, keys, vectors)
        if self.folder:
            place = self._place(kind)
            target = place / f"{digest(' '.join(keys))}.npz"
            # Runs share the folder, and two that lack the same texts write the same file.
            with FileLock(place / ".lock"), replacing(target) as path, path.open("wb") as file:
                np.savez(file, allow_pickle=False, **{"keys": np.array(keys), **vectors})

    def rows(self, kind: str, texts: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors [texts, width] by name, in the order of `texts`, which must all be known."""
        index = [self._rows[kind][digest(text)] for text in texts]
        blocks = self._vectors[kind]
        for name in names:
            if len(blocks[name]) > 1:
                blocks[name] = [np.concatenate(blocks[name])]
        return {name: blocks[name][0][index] for name in names}

    def _keep(self, kind: str, keys: Sequence[str], vectors: dict[str, np.ndarray]) -> None:
        known = self._rows.setdefault(kind, {})
        known.update({key: len(known) + position for position, key in enumerate(keys)})
        for name, block in vectors.items():
            self._vectors.setdefault(kind, {}).setdefault(name, []).append(block)

    def _place(self, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / hashlib.sha256(kind.encode()).hexdigest()[:16]

    def _load(self, kind: str) -> None:
        self._rows[kind] = {}
        if self.folder is None:
            return
        self._place(kind).mkdir(parents=True, exist_ok=True)
        (self._place(kind) / "kind.json").write_text(json.dumps(kind))
        for file in sorted(self._place(kind).glob("*.npz")):
            with np.load(file, allow_pickle=False) as stored:
                names = [name for name in stored.files if name != "keys"]
                self._keep(kind, [str(key) for key in stored["keys"]], {name: stored[name] for name in names})


def digest(text: str) -> str:
    """A text's key: 128 bits of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Embedder:
    """A sentence-transformers model that remembers the embeddings it gave."""

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "fp32",
        device: str | None = None,
        batch_tokens: int | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        """Load the model in `folder`; raises UserError where that can't be done."""
        self.folder = folder
        with quiet():
            self.model = load_folder(folder, device).eval()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns when classifiers start processes
        self.batch_tokens = batch_tokens or (CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS)
        if precision == "bf16":
            self.model[0].to(torch.bfloat16)
        self.cache = cache or EmbeddingCache(None)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    def prompt(self, role: str) -> str:
        """What stands before texts in the role query or document."""
        return next((prompt for name in PROMPTS[role] if (prompt := self.model.prompts.get(name))), "")

    def sentences(self, texts: Sequence[str], role: str = QUERY) -> np.ndarray:
        """The model's own embeddings [texts, width], float32, with the prompt of `role`."""
        prompt = self.prompt(role)

        def pool(features: Features) -> dict[str, torch.Tensor]:
            for module in list(self.model)[1:]:
                features = module(features)
            return {"own": features["sentence_embedding"]}

        own = self._vectors(texts, f"own {prompt!r}", prompt, self.model.get_max_seq_length(), ["own"], pool)
        return own["own"]

    def variants(self, texts: Sequence[str], max_tokens: int = LEADERBOARD_TOKENS) -> dict[str, np.ndarray]:
        """Pooled variants of the last hidden state, without a prompt, each [texts, hidden], float32.

        `cls` and `mean` (over the attention mask), and `pooler` where the checkpoint holds a pooler's weights:
        without them transformers would make one up at random.
        """
        encoder: Any = self.model[0].model
        names = ["cls", "mean"] + (["pooler"] if self.has_pooler else [])

        def pool(features: Features) -> dict[str, torch.Tensor]:
            hidden, mask = features["token_embeddings"], features["attention_mask"].unsqueeze(-1)
            pooled = {"cls": hidden[:, 0], "mean": (hidden * mask).sum(1) / mask.sum(1)}
            if self.has_pooler:
                pooled["pooler"] = encoder.pooler(hidden.to(encoder.dtype)).float()
            return pooled

        return self._vectors(texts, f"variants {max_tokens} {names}", "", max_tokens, names, pool)

    @torch.inference_mode()
    def words(self, texts: Sequence[list[str]]) -> list[np.ndarray]:
        """Vectors of words, one array [words, hidden] a text: the mean of a word's sub-tokens in the last layer.

        Texts are cut at the tokenizer's own limit (at most the position table's); a word without a sub-token, and
        every word after the cut, is a vector of zeros.
        """
        positions = most_tokens(self.model) or self.config.max_position_embeddings
        limit = min(self.tokenizer.model_max_length, positions)
        encoded = self.tokenizer(list(texts), is_split_into_words=True, truncation=True, max_length=limit)
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for batch, features in self.token_batches(encoded["input_ids"], "encoding words"):
            for row, index in enumerate(batch):
                words = encoded.word_ids(index)
                hidden = features["token_embeddings"][row, : len(words)].float().cpu()
                found[index] = _mean_by_word(hidden, words, len(texts[index]))
        require_finite((vectors for vectors in found if len(vectors)), self.folder)
        return found

    @property
    def config(self) -> Any:
        """transformers' config of the encoder."""
        encoder: Any = self.model[0].model
        return encoder.config

    @cached_property
    def has_pooler(self) -> bool:
        """Whether the checkpoint holds a pooler's weights."""
        names: set[str] = set()
        for file in self.folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                names.update(tensors.keys())
        return any("pooler.dense.weight" in name for name in names)

    @torch.inference_mode()
    def _vectors(
        self, texts: Sequence[str], kind: str, prompt: str, max_tokens: int | None, names: list[str], pool: Pool
    ) -> dict[str, np.ndarray]:
        """Look up the distinct texts, encode those that are missing, and give them back in order."""
        missing = self.cache.missing(kind, texts)
        if missing:
            ids = self.tokenizer([prompt + text for text in missing], truncation=True, max_length=max_tokens)
            made: dict[str, np.ndarray] = {}
            for batch, features in self.token_batches(ids["input_ids"], f"encoding {len(missing)} texts"):
                for name, pooled in pool(features).items():
                    vectors = pooled.float().cpu().numpy()
                    made.setdefault(name, np.empty((len(missing), vectors.shape[1]), np.float32))[batch] = vectors
            require_finite(made.values(), self.folder)
            self.cache.add(kind, missing, made)
        return self.cache.rows(kind, texts, names)

    def token_batches(self, ids: list[list[int]], what: str) -> Iterator[tuple[list[int], Features]]:
        """Token embeddings in float32 of batches of similar length, longest first, with the texts' indices."""
        batches = list(length_batches([len(row) for row in ids], self.batch_tokens))
        shown = progress(batches, what) if len(batches) >= VISIBLE_BATCHES else iter(batches)
        for batch in shown:
            padded = self.tokenizer.pad({"input_ids": [ids[index] for index in batch]}, return_tensors="pt")
            features = self.model[0]({name: value.to(self.model.device) for name, value in padded.items()})
            features["token_embeddings"] = features["token_embeddings"].float()
            yield batch, features


def require_finite(arrays: Iterable[Any], folder: Path) -> None:
    """Raise UserError where an embedding of the model in `folder` is NaN or infinite."""
    if not all(np.isfinite(array).all() for array in arrays):
        remedy = "its weights are broken, or overflow in this precision"
        raise UserError("the model's embeddings hold NaN or infinity", where=str(folder), remedy=remedy)


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches, longest texts first, each batch at most `budget` tokens after padding (or one text)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _mean_by_word(hidden: torch.Tensor, words: list[int | None], count: int) -> np.ndarray:
    """Mean of the rows of `hidden` [tokens, hidden] that belong to each of `count` words."""
    kept = [token for token, word in enumerate(words) if word is not None]
    index = torch.tensor([words[token] for token in kept], dtype=torch.long)
    sums = torch.zeros(count, hidden.shape[1]).index_add_(0, index, hidden[kept])
    sizes = torch.bincount(index, minlength=count).clamp(min=1)
    return (sums / sizes.unsqueeze(1)).numpy()
