"""`sentencepiece.bpe.model`: the same pieces as in `tokenizer.json`, under fairseq's numbering."""

from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import UserError
from training.vocabulary.tokenizer_file import TokenizerFile

NORMAL, CONTROL, UNKNOWN = 1, 3, 2  # piece types of SentencePiece that XLM-R's vocabulary has
FIRST = 3  # <unk>, <s> and </s> come first; every other piece has the id index + 1


def shrink_sentencepiece(path: Path, target: Path, tokenizer: TokenizerFile, kept: npt.NDArray[np.int64]) -> None:
    """Write the file with the kept pieces; its normaliser and its trainer's settings stay as they are.

    Raises:
        UserError: not a SentencePiece file, user-defined pieces (their score depends on the whole vocabulary), or
            pieces that differ from those of `tokenizer.json`.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

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
