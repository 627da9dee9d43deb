"""The two files of a Unigram tokenizer: read, checked, and written with fewer pieces and everything else unchanged."""

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from pipeline.core.errors import UserError

REQUIRED = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
OTHER_BASE = "choose a base with XLM-R's tokenizer, or keep its whole vocabulary: init=full"
NORMAL, CONTROL, UNKNOWN = 1, 3, 2  # piece types of SentencePiece that XLM-R's vocabulary has
FIRST = 3  # <unk>, <s> and </s> come first; every other piece has the id index + 1
NO_PIECES = '"vocab": []'  # placeholder of the pieces while the rest is written; JSON strings have escaped quotes
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerFile:
    """A Unigram tokenizer as stored in its file; a piece's id is its index."""

    path: Path
    document: dict[str, Any]  # everything but the pieces, and without truncation and padding, which belong to a call
    pieces: list[str]
    scores: npt.NDArray[np.float64]  # log probabilities of the pieces

    @classmethod
    def read(cls, path: Path) -> "TokenizerFile":
        """Read and check the file.

        Raises UserError: no such file, not JSON, not a Unigram model, or without one of XLM-R's special tokens.
        """
        try:
            gc.disable()  # it would spend most of the time looking for cycles among 250,000 new lists
            made = cls._parsed(path, json.loads(path.read_bytes().decode("utf-8")))
            if not np.isfinite(made.scores).all() or not 0 <= made.unknown_id < made.size:
                raise ValueError("a score that is not finite, or an unknown piece beyond the others")
            missing = [token for token in REQUIRED if token not in made.special_ids]
        except FileNotFoundError:
            raise UserError("the base has no tokenizer.json", where=str(path), remedy=OTHER_BASE) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"not a tokenizer file: {error}"
            raise UserError(what, where=str(path), remedy="make or download the base again") from None
        finally:
            gc.enable()
        if missing:
            what = f"the tokenizer lacks the special tokens {', '.join(missing)}"
            raise UserError(what, where=str(path), remedy=OTHER_BASE)
        return made

    @classmethod
    def _parsed(cls, path: Path, document: dict[str, Any]) -> "TokenizerFile":
        model = document["model"]
        kind = model.get("type", "of unknown type")
        if kind != "Unigram" or model.get("unk_id") is None:
            what = f"the base's tokenizer is not Unigram but {kind}"
            raise UserError(what, where=str(path), remedy=OTHER_BASE)
        pieces, scores = zip(*model["vocab"], strict=True)
        model["vocab"] = []
        return cls(path, {**document, "truncation": None, "padding": None}, list(pieces), np.array(scores, np.float64))

    @property
    def size(self) -> int:
        """Number of ids: the pieces, and added tokens after them."""
        return max(len(self.pieces), 1 + max(self.special_ids.values()))

    @property
    def unknown_id(self) -> int:
        return int(self.document["model"]["unk_id"])

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the added tokens, by their text."""
        return {token["content"]: int(token["id"]) for token in self.document["added_tokens"]}

    def piece(self, old_id: int) -> str:
        """The text of an id, whether of a piece or of an added token."""
        if old_id < len(self.pieces):
            return self.pieces[old_id]
        return next(text for text, place in self.special_ids.items() if place == old_id)

    def write(self, path: Path, kept: Ids) -> None:
        """Write the tokenizer with the ids `kept`, ascending and renumbered from 0.

        Only the pieces and written ids change; normaliser, pre-tokeniser and decoder don't.
        """
        new_ids = {int(old): new for new, old in enumerate(kept)}
        text = json.dumps(_renumbered(self.document, new_ids), ensure_ascii=False, indent=1)
        entry = json.JSONEncoder(ensure_ascii=False).encode
        rows = (f"[{entry(self.pieces[old])},{float(self.scores[old])!r}]" for old in kept if old < len(self.pieces))
        head, found, tail = text.rpartition(NO_PIECES)
        assert found
        path.write_text(f'{head}"vocab": [\n' + ",\n".join(rows) + f"\n]{tail}\n", encoding="utf-8")


def _renumbered(document: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The document with the ids of its model, added tokens and post-processor replaced."""
    changed = json.loads(json.dumps(document))
    changed["model"]["unk_id"] = new_ids[changed["model"]["unk_id"]]
    for token in changed["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    processor = changed.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [new_ids[old] for old in special["ids"]]
        for name in ("cls", "sep"):  # [text, id] of the post-processors of BERT and RoBERTa
            if name in part:
                part[name][1] = new_ids[part[name][1]]
    return changed


def shrink_sentencepiece(path: Path, target: Path, tokenizer: TokenizerFile, kept: Ids) -> None:
    """Write `sentencepiece.bpe.model` with the kept pieces; its normaliser and its trainer's settings are unchanged.

    Raises UserError: not a SentencePiece file, user-defined pieces (their score depends on the whole vocabulary), or
    pieces that differ from those of `tokenizer.json`.
    """
    try:
        model = ModelProto.FromString(path.read_bytes())
    except DecodeError:
        model = ModelProto()
    if len(model.pieces) <= FIRST:
        raise UserError("not a SentencePiece model", where=str(path), remedy="download the base again")
    kinds, texts, scores = (list(map(attrgetter(name), model.pieces)) for name in ("type", "piece", "score"))
    for index, kind in enumerate(kinds):
        if kind not in ((CONTROL, UNKNOWN) if index < FIRST else (NORMAL,)):
            what = f"piece {index} of the SentencePiece model, {texts[index]}, is not an ordinary one"
            raise UserError(what, where=str(path), remedy="choose a base with XLM-R's vocabulary")
    ordinary = slice(FIRST + 1, len(texts) + 1)
    same_pieces = texts[FIRST:] == tokenizer.pieces[ordinary]
    same_scores = np.array_equal(np.array(scores[FIRST:], np.float32), tokenizer.scores[ordinary].astype(np.float32))
    if not same_pieces or not same_scores:
        remedy = "take both files from one revision of the base"
        raise UserError("sentencepiece.bpe.model and tokenizer.json differ", where=str(path), remedy=remedy)
    indices = [*range(FIRST), *(old - 1 for old in kept.tolist() if FIRST < old <= len(texts))]
    pieces = [model.pieces[index] for index in indices]
    del model.pieces[:]
    model.pieces.extend(pieces)
    target.write_bytes(model.SerializeToString(deterministic=True))
