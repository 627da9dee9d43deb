"""Embeddings of texts for all stages: each distinct text is encoded once, in batches of similar length.

Whatever the encoder's precision, its outputs are float32 before they are pooled, scaled and compared.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate.utils import convert_to_fp32, send_to_device
from filelock import FileLock
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from pipeline.core.artefact import replacing
from pipeline.core.console import progress
from pipeline.core.device import AUTOCAST
from pipeline.core.errors import UserError
from pipeline.core.packed import concatenated, first_position_of, is_packed, pack, use_packed, why_not_packed

CPU_TOKENS, GPU_TOKENS = 512, 65536  # padded tokens in a pass; on a CPU activations should fit into its cache
VISIBLE_BATCHES = 64  # from this many on a progress bar is shown
KEPT_AT_ONCE = 128  # characters per token of a pass, i.e. some tens of passes, as each write waits for the disk
MOST_BYTES = 4 * 2**30  # of cached vectors in memory: a million texts at width 1,024
QUERY, DOCUMENT = "query", "document"  # roles of a text
PROMPTS = {QUERY: ("query",), DOCUMENT: ("document", "passage", "corpus")}  # role -> possible names of its prompt

Features = dict[str, Any]
Vectors = dict[str, np.ndarray]  # name -> [texts, width]


class EmbeddingCache:
    """Embeddings by kind (output, prompt and length, in one string) and text, in memory and in `folder`.

    A folder belongs to one model fingerprint and precision; None keeps nothing on disk.

    Only files with a wanted text are read, as a folder may hold ten million others. If memory holds more than
    MOST_BYTES, it is cleared before the next texts, which are then read from the folder again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Path]] = {}  # kind -> text's digest -> file
        self._rows: dict[str, dict[str, int]] = {}  # kind -> text's digest -> row
        self._vectors: dict[str, dict[str, list[np.ndarray]]] = {}  # kind -> name -> blocks of rows

    def missing(self, kind: str, texts: Sequence[str]) -> list[str]:
        """The distinct texts without vectors of this kind, in order."""
        blocks = (block for kinds in self._vectors.values() for named in kinds.values() for block in named)
        if sum(block.nbytes for block in blocks) > MOST_BYTES:
            self._rows, self._vectors = {}, {}
        files, known = self._found(kind), self._rows.setdefault(kind, {})
        wanted = {text_key(text): text for text in dict.fromkeys(texts)}
        for file in dict.fromkeys(files[key] for key in wanted if key in files and key not in known):
            if stored := _stored(file):
                self._keep(kind, *stored)
        return [text for key, text in wanted.items() if key not in known]

    def add(self, kind: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Store vectors [texts, width], by name, of distinct texts that were missing."""
        keys = [text_key(text) for text in texts]
        self._keep(kind, keys, vectors)
        if place := self._place(kind):
            target = place / f"{text_key(' '.join(keys))}.npz"
            # Runs share the folder, and two that miss the same texts write the same file.
            with FileLock(place / ".lock"), replacing(target) as path, path.open("wb") as file:
                np.savez(file, allow_pickle=False, **{"keys": np.array(keys), **vectors})
            self._found(kind).update(dict.fromkeys(keys, target))

    def rows(self, kind: str, texts: Sequence[str], names: Sequence[str]) -> Vectors:
        """Vectors [texts, width] by name, in the order of `texts`, which must all be cached."""
        index = np.array([self._rows[kind][text_key(text)] for text in texts], np.int64)
        return {name: _taken(self._vectors[kind][name], index) for name in names}

    def _keep(self, kind: str, keys: Sequence[str], vectors: Vectors) -> None:
        known, kept = self._rows.setdefault(kind, {}), self._vectors.setdefault(kind, {})
        first = sum(map(len, next(iter(kept.values()), [])))  # not len(known): files of two runs may share texts
        known.update({key: first + position for position, key in enumerate(keys)})
        for name, block in vectors.items():
            kept.setdefault(name, []).append(block)

    def _place(self, kind: str) -> Path | None:
        return self.folder and self.folder / hashlib.sha256(kind.encode()).hexdigest()[:16]

    def _found(self, kind: str) -> dict[str, Path]:
        """The file with each text's vectors, by the text's key."""
        if kind not in self._files:
            self._files[kind] = {}
            if place := self._place(kind):
                place.mkdir(parents=True, exist_ok=True)
                (place / "kind.json").write_text(json.dumps(kind))
                for file in sorted(place.glob("*.npz")):
                    if stored := _stored(file, vectors=False):
                        self._files[kind].update(dict.fromkeys(stored[0], file))
        return self._files[kind]


def _stored(file: Path, vectors: bool = True) -> tuple[list[str], Vectors] | None:
    """Keys, and vectors if wanted; None if the file is damaged or foreign, whose texts are then encoded again."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names = [name for name in stored.files if vectors and name != "keys"]
            return stored["keys"].tolist(), {name: stored[name] for name in names}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None


def _taken(blocks: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Rows by their index over all blocks, which are not concatenated: that would hold them in memory twice."""
    starts = np.cumsum([0, *map(len, blocks)])
    place = np.searchsorted(starts, index, side="right") - 1
    taken = np.empty((len(index), *blocks[0].shape[1:]), blocks[0].dtype)
    for number in np.unique(place):
        own = place == number
        taken[own] = blocks[number][index[own] - starts[number]]
    return taken


def text_key(text: str) -> str:
    """A text's key: 128 bits of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Embedder:
    """Embeds texts with a sentence-transformers model in batches of similar length; `embed` encodes each text once.

    Args:
        model: not changed; its weights may change between calls, if `cache` is not used after that.
        max_length: tokens at which texts are truncated, unless the model's own limit is smaller.
        token_budget: padded tokens in a pass; None: by the device.
        precision: bf16 and fp16 run the encoder under autocast, which 16-bit weights don't need.
        cache: looked up first by `embed`; None: nothing is kept between calls.
        show_progress_bar: whether encoding many texts shows progress.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        max_length: int | None = None,
        token_budget: int | None = None,
        precision: str = "fp32",
        cache: EmbeddingCache | None = None,
        show_progress_bar: bool = True,
    ) -> None:
        self.model, self.cache, self.show_progress_bar = model, cache, show_progress_bar
        self.tokenizer: Any = model.tokenizer
        limits = [limit for limit in (max_length, model.max_seq_length) if limit and limit != float("inf")]
        self.max_length = min(limits, default=None)
        self.token_budget = token_budget or (CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS)
        self.dtype = AUTOCAST.get(precision)
        in_half = self.dtype is not None or model.dtype in AUTOCAST.values()
        if model.device.type == "cuda" and why_not_packed(model, in_half, dropout=0.0) is None:
            use_packed(model)
        # A model switched to packing elsewhere may be used in float32 here, for which the GPU has no kernel.
        self.packs = is_packed(model) and (in_half or model.device.type == "cpu")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns if processes are started later

    def prompt(self, role: str | None) -> str:
        """The model's prompt for texts in the role query or document, or in none."""
        return _prompt(self.model, role)

    def embed(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """The model's own embeddings, shape (texts, dimension), float32.

        Raises UserError if one is not finite, or the prompt leaves no room for texts.
        """
        require_room(self.model, [prompt], self.max_length)
        make = lambda new: {"own": self.encode(self.tokenise(new, prompt), prompt)}  # noqa: E731
        return self.lookup(texts, f"own {self.max_length} {prompt!r}", ["own"], make)["own"]

    def lookup(
        self, texts: Sequence[str], kind: str, names: Sequence[str], make: Callable[[list[str]], Vectors]
    ) -> Vectors:
        """Vectors of `texts` by name: `make` computes those of the distinct texts that the cache lacks.

        With a cache on disk they are made and stored part by part, so that little is lost if the process ends.
        """
        cache = self.cache or EmbeddingCache()
        missing = cache.missing(kind, texts)
        most, characters = KEPT_AT_ONCE * self.token_budget, 0
        numbered: dict[int, list[str]] = {}
        for text in missing:
            characters += len(text)
            numbered.setdefault(characters // most if cache.folder else 0, []).append(text)
        parts = numbered.values()
        shown = self.show_progress_bar and len(parts) > 1
        for part in progress(parts, f"encoding {len(missing)} texts") if shown else parts:
            made = make(part)
            require_finite(made.values(), self.model)
            cache.add(kind, part, made)
        return cache.rows(kind, texts, names)

    def tokenise(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[list[int]]:
        """Token ids of prompt + text with special tokens, truncated at `max_length` tokens (default: the embedder's).

        A static model's ids have no special tokens and are not truncated.
        """
        full = [prompt + text for text in texts]
        if isinstance(self.model[0], StaticEmbedding):
            return [encoding.ids for encoding in self.tokenizer.encode_batch(full, add_special_tokens=False)]
        return self.tokenizer(full, truncation=True, max_length=max_length or self.max_length)["input_ids"]

    @torch.no_grad()  # in inference mode autocast would convert the weights for each batch
    def encode(self, ids: Sequence[list[int]], prompt: str = "") -> np.ndarray:
        """Embeddings of tokenised texts, shape (texts, dimension), float32; some poolings exclude the `prompt`."""
        vectors: np.ndarray | None = None
        with self._autocast(True):  # around all batches, so that weights are converted once
            for batch in self._batches(ids):
                texts = [ids[index] for index in batch]
                pooled = self.pooled(self._features(texts, prompt, self.packs)).cpu().numpy()
                if vectors is None:
                    vectors = np.empty((len(ids), pooled.shape[1]), np.float32)
                vectors[batch] = pooled
        return np.zeros((0, self.model.get_embedding_dimension() or 0), np.float32) if vectors is None else vectors

    def pooled(self, features: Features) -> torch.Tensor:
        """Embeddings of one batch, shape (texts, dimension), float32, on the model's device."""
        return self.pool(self.hidden(features))

    def pool(self, features: Features) -> torch.Tensor:
        """Embeddings (texts, dimension) of the outputs of `hidden`."""
        with self._autocast(False):
            for module in list(self.model)[1:]:
                features = module(features)
        return features["sentence_embedding"][:, : self.model.truncate_dim].float()

    def hidden(self, features: Features) -> Features:
        """The encoder's outputs for one batch in float32, such as token_embeddings: (texts, tokens, width) if texts are
        padded, (1, all tokens, width) if they are packed.

        Raises UserError if the device runs out of memory.
        """
        moved = send_to_device(features, self.model.device)
        try:
            with self._autocast(True):
                made = self.model[0](moved)
        except torch.OutOfMemoryError as error:
            what = f"the device's memory is full with {self.token_budget} tokens at once"
            remedy = f"set token_budget={max(self.token_budget // 2, 1)}, or end other processes on the device"
            raise UserError(what, where="config key token_budget", remedy=remedy) from error
        return convert_to_fp32(made)

    @torch.inference_mode()
    def token_batches(self, ids: Sequence[list[int]], prompt: str = "") -> Iterator[tuple[list[int], Features]]:
        """Yield (indices of the texts, the encoder's outputs) for padded batches of similar length, longest first."""
        for batch in self._batches(ids):
            yield batch, self.hidden(self._features([ids[index] for index in batch], prompt))

    def _batches(self, ids: Sequence[list[int]]) -> Iterable[list[int]]:
        batches = list(length_batches([len(row) for row in ids], self.token_budget))
        shown = self.show_progress_bar and len(batches) >= VISIBLE_BATCHES
        return progress(batches, f"encoding {len(ids)} texts") if shown else batches

    def _features(self, ids: list[list[int]], prompt: str, packed: bool = False) -> Features:
        """The input of the model's first module for one batch."""
        if isinstance(self.model[0], StaticEmbedding):
            return {"input_ids": concatenated(ids).long(), "offsets": torch.tensor(np.cumsum([0, *map(len, ids[:-1])]))}
        if packed:
            features = pack(ids, first_position_of(self.model))
        else:
            features = dict(self.tokenizer.pad({"input_ids": ids}, return_tensors="pt"))
        if prompt:
            own = self.tokenizer(prompt)["input_ids"]
            features["prompt_length"] = len(own) - (own[-1] in self.tokenizer.all_special_ids)
        return features

    def _autocast(self, enabled: bool) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.dtype, enabled=enabled and self.dtype is not None)


class Prompts(NamedTuple):
    """The prompts of a set's texts."""

    anchor: str
    positive: str


def prompts_of(model: SentenceTransformer, data_side: str) -> Prompts:
    """The model's query prompt for both texts of symmetric sets, query and document prompts for asymmetric ones."""
    return Prompts(_prompt(model, QUERY), _prompt(model, QUERY if data_side == "symmetric" else DOCUMENT))


def _prompt(model: SentenceTransformer, role: str | None) -> str:
    found = [model.prompts[name] for name in PROMPTS.get(role or "", ()) if name in model.prompts]
    default = model.prompts.get(model.default_prompt_name or "")
    return next(filter(None, found), "") if found else default or ""


def require_room(model: SentenceTransformer, prompts: Iterable[str], length: int | None, where: str = "") -> None:
    """Raise UserError if a prompt leaves no token of the texts, which are cut at `length`: they would all be equal.

    `where` is the setting of that length; empty: the model.
    """
    for prompt in filter(None, prompts if length else ()):
        if isinstance(model[0], StaticEmbedding):
            return  # it cuts no texts
        if len(model.tokenizer(prompt, truncation=True, max_length=length)["input_ids"]) == length:
            what = f"nothing is left of a text that is cut at {length} tokens, as the prompt {prompt[:40]!r} fills them"
            raise UserError(what, where=where or _place(model), remedy="shorten the prompt, or raise the length")


def _place(model: SentenceTransformer) -> str:
    return str(getattr(getattr(model[0], "model", None), "name_or_path", "the model"))


def require_finite(arrays: Iterable[Any], model: SentenceTransformer) -> None:
    """Raise UserError if an embedding of the model is NaN or infinite."""
    if not all(np.isfinite(np.asarray(array)).all() for array in arrays):
        remedy = "use fp32, in case they overflow in this precision, or make the model again"
        raise UserError("the model's embeddings hold NaN or infinity", where=_place(model), remedy=remedy)


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """The vectors [..., width], each scaled to length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches, longest texts first, each batch at most `budget` tokens after padding (or one text)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
