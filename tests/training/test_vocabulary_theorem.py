"""The equivalence theorem, property-tested in both backends on small vocabularies full of ties."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer

from training.vocabulary.certificate import DROPPED, TokenizerComparison, successors
from training.vocabulary.selection import pinned_id
from training.vocabulary.tokenizer_file import TokenizerFile, shrink_sentencepiece

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
UNKNOWN, CONTROL = 2, 3


@dataclass(frozen=True)
class Vocabulary:
    """Pieces with scores, and which of them are kept."""

    pieces: dict[str, float]
    kept: frozenset[str]


def write_tokenizer(pieces: dict[str, float], path: Path) -> None:
    vocabulary = [[special, 0.0] for special in SPECIALS] + [[piece, score] for piece, score in pieces.items()]
    vocabulary.append(["<mask>", 0.0])
    specials = {special: place for place, special in enumerate(SPECIALS)} | {"<mask>": len(vocabulary) - 1}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": place, "content": special, **flags} for special, place in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary},
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def write_sentencepiece(pieces: dict[str, float], path: Path) -> None:
    model = ModelProto()
    model.trainer_spec.model_type = 1  # Unigram
    model.normalizer_spec.name = "identity"
    for piece, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in pieces.items():
        model.pieces.add(piece=piece, score=score)
    path.write_bytes(model.SerializeToString())


def shrunk(pieces: dict[str, float], kept: frozenset[str], folder: Path, pin: bool) -> tuple[TokenizerFile, np.ndarray]:
    """Both files written and shrunk in `folder`; returns the original and the kept ids."""
    write_tokenizer(pieces, folder / "tokenizer.json")
    write_sentencepiece(pieces, folder / "spm")
    tokenizer = TokenizerFile.read(folder / "tokenizer.json")
    ids = [*range(4), *(4 + place for place, piece in enumerate(pieces) if piece in kept), tokenizer.size - 1]
    if pin:
        ids.append(pinned_id(tokenizer, np.array(ids)))
    chosen = np.unique(np.array(ids, dtype=np.int64))
    tokenizer.write(folder / "small.json", chosen)
    shrink_sentencepiece(folder / "spm", folder / "small", tokenizer, chosen)
    return tokenizer, chosen


def fairseq(processor: SentencePieceProcessor, text: str) -> list[int]:
    return [index + 1 if index else 3 for index in processor.encode(text)]


pieces_of_ties = st.dictionaries(
    st.text("abc", min_size=1, max_size=4) | st.text("abc", max_size=3).map("▁".__add__),
    st.integers(-6, -1).map(float) | st.sampled_from([-0.1, -0.2, -0.3, -12.7, -20.36475181579590]),
    min_size=1,
    max_size=25,
)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    pieces = draw(pieces_of_ties)
    return Vocabulary(pieces, frozenset(draw(st.sets(st.sampled_from(sorted(pieces))))))


texts = st.lists(st.text("abcd  ", min_size=1, max_size=14), min_size=1, max_size=12)


@given(vocabulary=vocabularies(), texts=texts)
@settings(max_examples=300, deadline=None)
def test_a_text_keeps_its_segmentation_if_and_only_if_its_pieces_are_kept(
    vocabulary: Vocabulary, texts: list[str]
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, kept = shrunk(vocabulary.pieces, vocabulary.kept, folder, pin=True)
        new_ids = successors(kept, tokenizer.size)
        backends = [
            [Tokenizer.from_file(str(folder / file)) for file in ("tokenizer.json", "small.json")],
            [SentencePieceProcessor(model_file=str(folder / file)) for file in ("spm", "small")],
        ]
        for text in texts:
            old, new = (each.encode(text, add_special_tokens=False).ids for each in backends[0])
            assert covered(old, new_ids) == (new_ids[old].tolist() == new) == (pieces(tokenizer, kept, old, new))
            old, new = (fairseq(each, text) for each in backends[1])
            assert covered(old, new_ids) == (new_ids[old].tolist() == new)
            event(f"covered: {covered(old, new_ids)}")


def covered(old: list[int], new_ids: np.ndarray) -> bool:
    return bool((new_ids[old] != DROPPED).all())


def pieces(tokenizer: TokenizerFile, kept: np.ndarray, old: list[int], new: list[int]) -> bool:
    """Whether both segmentations are the same pieces, which says the same without the map of ids."""
    return [tokenizer.piece(each) for each in old] == [tokenizer.piece(int(kept[each])) for each in new]


COUNTEREXAMPLE = {"ab": -12.0, "c": -12.0, "bc": -1.0, "▁": -1.0, "z": -30.0}


@pytest.mark.parametrize(("pin", "mismatches"), [(True, 0), (False, 1)])
def test_without_the_piece_of_minimum_score_a_covered_text_changes(tmp_path: Path, pin: bool, mismatches: int) -> None:
    tokenizer, kept = shrunk(COUNTEREXAMPLE, frozenset(COUNTEREXAMPLE) - {"z"}, tmp_path, pin)
    before = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    after = Tokenizer.from_file(str(tmp_path / "small.json"))
    comparison = TokenizerComparison(before, after, successors(kept, tokenizer.size), tokenizer.unknown_id)
    found = comparison.agreement(["abc"])
    assert (found.covered, found.mismatches) == (1, mismatches)
    assert after.encode("abc").tokens[1:] == (["ab", "c"] if pin else ["a", "bc"])
    processors = [SentencePieceProcessor(model_file=str(tmp_path / file)) for file in ("spm", "small")]
    old, new = (processor.encode("abc", out_type=str) for processor in processors)
    assert (old == new) == pin
