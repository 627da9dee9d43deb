"""A tokenizer's files: read, checked, and written with fewer pieces and everything else unchanged."""

import gc
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.pre_tokenizers import ByteLevel

from pipeline.core.errors import UserError

UNIGRAM, WORD_PIECE, BPE = "Unigram", "WordPiece", "BPE"
OTHER_BASE = "choose another base, or keep its whole vocabulary: init=full"
NORMAL, CONTROL, UNKNOWN = 1, 3, 2  # piece types of SentencePiece that XLM-R's vocabulary has
FIRST = 3  # <unk>, <s> and </s> come first; every other piece has the id index + 1
NO_PIECES = '"vocab": []'  # placeholder of the pieces while the rest is written; JSON strings have escaped quotes
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece of SentencePiece's for a byte of a character that has none
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer of kind Unigram, WordPiece or BPE as stored in its file."""

    path: Path
    document: dict[str, Any]  # all but pieces and merges, and without truncation and padding, which belong to a call
    pieces: list[str]  # by id; empty where only an added token has the id
    scores: npt.NDArray[np.float64] | None = None  # Unigram: log probabilities of the pieces
    merges: list[Any] | None = None  # BPE: pairs of pieces, the first to be merged first, as the file writes them

    @classmethod
    def read(cls, path: Path) -> "TokenizerFile":
        """Read and check the file; raises UserError: no such file, not JSON, or a tokenizer of another kind."""
        try:
            gc.disable()  # it would spend most of the time looking for cycles among 250,000 new lists
            made = cls._parsed(path, json.loads(path.read_bytes().decode("utf-8")))
            if made.scores is not None and not np.isfinite(made.scores).all():
                raise ValueError("a score that is not finite")
            if made.unknown_id is not None and not 0 <= made.unknown_id < made.size:
                raise ValueError("an unknown piece beyond the others")
            _ = made._ranks  # raises where a merge is no pair
        except FileNotFoundError:
            raise UserError("the base has no tokenizer.json", where=str(path), remedy=OTHER_BASE) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"not a tokenizer file: {error}"
            raise UserError(what, where=str(path), remedy="make or download the base again") from None
        finally:
            gc.enable()
        return made

    @classmethod
    def _parsed(cls, path: Path, document: dict[str, Any]) -> "TokenizerFile":
        model = document["model"]
        kind = model.get("type", "of unknown type")
        plain = {**document, "truncation": None, "padding": None}
        if kind == UNIGRAM:
            if model["unk_id"] is None:
                raise ValueError("it has no unknown piece")
            texts, scores = zip(*model["vocab"], strict=True)
            model["vocab"] = []
            return cls(path, plain, list(texts), np.array(scores, np.float64))
        marks_words = kind == BPE and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        if kind not in (WORD_PIECE, BPE) or marks_words:
            what = f"the base's tokenizer is neither Unigram, WordPiece nor plain BPE, but {kind}"
            raise UserError(what, where=str(path), remedy=OTHER_BASE)
        pieces = [""] * (1 + max(model["vocab"].values()))
        for piece, own in model["vocab"].items():
            pieces[own] = piece
        model["vocab"] = {}
        return cls(path, plain, pieces, merges=model.pop("merges") if kind == BPE else None)

    @property
    def kind(self) -> str:
        return str(self.document["model"]["type"])

    @property
    def size(self) -> int:
        """Number of ids: the pieces, and added tokens after them."""
        return max(len(self.pieces), 1 + max(self.special_ids.values(), default=-1))

    @property
    def unknown_id(self) -> int | None:
        """The id of what is in no piece; None where bytes stand for it."""
        model = self.document["model"]
        return model["unk_id"] if self.kind == UNIGRAM else self._ids.get(model.get("unk_token"))

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the added tokens, by their text."""
        return {token["content"]: int(token["id"]) for token in self.document["added_tokens"]}

    @cached_property
    def characters(self) -> list[str]:
        """What each piece stands for inside a word: without its prefix, and with bytes decoded, if they are text."""
        if self._has_bytes:
            texts = map(ByteDecoder().decode, ([piece] for piece in self.pieces))
            return ["" if "\ufffd" in text else text for text in texts]  # which stands for a part of a character
        prefix = self.document["model"].get("continuing_subword_prefix") or ""  # ## of WordPiece
        return [piece.removeprefix(prefix) for piece in self.pieces]

    @cached_property
    def bytes(self) -> frozenset[int]:
        """Ids of single bytes, into which what has no piece is split."""
        alphabet = (
            {*ByteLevel.alphabet()} if self._has_bytes else {piece for piece in self.pieces if BYTE.fullmatch(piece)}
        )
        return frozenset(self._ids[piece] for piece in alphabet if piece in self._ids)

    def piece(self, old_id: int) -> str:
        """The text of an id, whether of a piece or of an added token."""
        if old_id < len(self.pieces) and self.pieces[old_id]:
            return self.pieces[old_id]
        return next(text for text, place in self.special_ids.items() if place == old_id)

    def parts(self, old_id: int) -> set[int]:
        """The id and, in BPE, the ids of all pieces that are merged on the way to its own.

        In any text these are the same: a merge across the piece's ends would have prevented it, and those inside it
        come in the order in which they come where the piece is the whole text. Merges lead also to some added tokens,
        which aren't found inside a word, or before the text is normalised; to bytes and most special tokens none do.
        """
        if self.kind != BPE or old_id >= len(self.pieces):
            return {old_id}
        found, symbols = {old_id}, list(self.pieces[old_id])
        while True:
            found.update(self._ids[symbol] for symbol in symbols if symbol in self._ids)
            ranks = [(self._ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in self._ranks]
            if not ranks:
                return found if len(symbols) == 1 else {old_id}
            place = min(ranks)[1]
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]

    def with_parts(self, ids: Ids) -> Ids:
        """These ids and all their parts, ascending."""
        return np.unique(np.fromiter(chain.from_iterable(map(self.parts, ids.tolist())), np.int64))

    def write(self, path: Path, kept: Ids) -> None:
        """Write the tokenizer with the ids `kept`, ascending and renumbered from 0.

        Only the pieces, their merges and written ids change; normaliser, pre-tokeniser and decoder don't.
        """
        new_ids = {int(old): new for new, old in enumerate(kept)}
        document = _renumbered(self.document, new_ids)
        own = [old for old in new_ids if old < len(self.pieces)]
        if self.scores is None:
            model, pieces = document["model"], {self.pieces[old]: new_ids[old] for old in own if self.pieces[old]}
            model["vocab"] = pieces
            if self.merges is not None:
                pairs = ((merge, *_pair(merge)) for merge in self.merges)
                model["merges"] = [
                    merge for merge, left, right in pairs if {left, right, left + right} <= pieces.keys()
                ]
            path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
            return
        entry = json.JSONEncoder(ensure_ascii=False).encode
        rows = (f"[{entry(self.pieces[old])},{float(self.scores[old])!r}]" for old in own)
        head, found, tail = json.dumps(document, ensure_ascii=False, indent=1).rpartition(NO_PIECES)
        assert found
        path.write_text(f'{head}"vocab": [\n' + ",\n".join(rows) + f"\n]{tail}\n", encoding="utf-8")

    @cached_property
    def _ids(self) -> dict[str | None, int]:
        return {piece: own for own, piece in enumerate(self.pieces) if piece}

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {_pair(merge): rank for rank, merge in enumerate(self.merges or ())}

    @property
    def _has_bytes(self) -> bool:
        """Whether the characters of pieces stand for bytes of UTF-8, as in GPT-2's tokenizer."""
        return '"ByteLevel"' in json.dumps([self.document.get(step) for step in ("normalizer", "pre_tokenizer")])


def _pair(merge: Any) -> tuple[str, str]:
    """The two pieces of a merge, a list or, in older files, text with a space."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumbered(document: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The document with the ids of its model, added tokens and post-processor replaced."""
    changed = json.loads(json.dumps(document))
    if changed["model"]["type"] == UNIGRAM:
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
    same_pieces, known = texts[FIRST:] == tokenizer.pieces[ordinary], tokenizer.scores
    of_file = np.array(scores[FIRST:], np.float32)
    if known is None or not same_pieces or not np.array_equal(of_file, known[ordinary].astype(np.float32)):
        what = "sentencepiece.bpe.model and tokenizer.json differ, or are not one id apart as XLM-R's are"
        remedy = "take both files from one revision; for CamemBERT, name a copy without the former in base.hub"
        raise UserError(what, where=str(path), remedy=remedy)
    indices = [*range(FIRST), *(old - 1 for old in kept.tolist() if FIRST < old <= len(texts))]
    pieces = [model.pieces[index] for index in indices]
    del model.pieces[:]
    model.pieces.extend(pieces)
    target.write_bytes(model.SerializeToString(deterministic=True))
