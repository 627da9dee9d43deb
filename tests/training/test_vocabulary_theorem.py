"""The equivalence theorem, property-tested on small vocabularies full of ties: in both backends, and for each kind."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit

from configs.schema.init import InitConfig
from training.vocabulary.certificate import (
    DROPPED,
    Agreement,
    TokenizerComparison,
    compare_corpora,
    compare_hidden_states,
    language_shares,
    successors,
)
from training.vocabulary.selection import pinned_id, select
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
        assert tokenizer.scores is not None
        ids.append(pinned_id(tokenizer.scores, np.array(ids)))
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


@st.composite
def merging_tokenizers(draw: st.DrawFn) -> Tokenizer:
    """BPE whose pieces can come of several merges, in any order, or of none; "d" has no piece."""
    pieces, merges = [*"abc "], list[tuple[str, str]]()
    for _ in range(draw(st.integers(1, 14))):
        left, right = draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces))
        if len(left + right) < 6 and (left, right) not in merges:
            merges.append((left, right))
            pieces += [left + right] * (left + right not in pieces)
    pieces.append("bca")  # that no merge makes
    unknown = draw(st.sampled_from([{}, {"unk_token": "<unk>", "fuse_unk": True}, {"byte_fallback": True}]))
    pieces += ["<unk>"] if "unk_token" in unknown else [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: own for own, piece in enumerate(dict.fromkeys(pieces))}
    return Tokenizer(BPE(vocabulary, draw(st.permutations(merges)), ignore_merges=draw(st.booleans()), **unknown))


@st.composite
def word_tokenizers(draw: st.DrawFn) -> Tokenizer:
    """WordPiece, which lacks a continuation or a start now and then; "d" has no piece."""
    starts = draw(st.sets(st.text("abc", min_size=1, max_size=4), max_size=12))
    others = draw(st.sets(st.text("abc", min_size=1, max_size=4), max_size=12))
    pieces = ["[UNK]", *sorted(starts), *(f"##{text}" for text in sorted(others))]
    return Tokenizer(WordPiece({piece: own for own, piece in enumerate(pieces)}, unk_token="[UNK]"))


@given(
    before=merging_tokenizers() | word_tokenizers(),
    splits=st.booleans(),
    texts=texts,
    chosen=st.lists(st.integers(0, 20), min_size=3, max_size=15),
)
@settings(max_examples=300, deadline=None)
def test_so_does_a_text_of_merges_and_a_known_one_of_longest_pieces(
    before: Tokenizer, splits: bool, texts: list[str], chosen: list[int]
) -> None:
    if splits:
        before.pre_tokenizer = WhitespaceSplit()
    before.add_special_tokens([AddedToken("<pad>", special=True)])
    with TemporaryDirectory() as name:
        before.save(f"{name}/tokenizer.json")
        tokenizer = TokenizerFile.read(Path(name) / "tokenizer.json")
        nothing = {"ru": np.zeros(tokenizer.size, np.int64)}
        needed = np.array([own for own in chosen if own < tokenizer.size], np.int64)
        kept = select(tokenizer, nothing, InitConfig(rule="notebook"), ["ru"], needed).kept
        tokenizer.write(Path(name) / "small.json", kept)
        after = Tokenizer.from_file(f"{name}/small.json")
    new_ids, is_merged = successors(kept, tokenizer.size), tokenizer.kind == "BPE"
    for text in texts:
        old, new = (each.encode(text).ids for each in (before, after))
        same = pieces(tokenizer, kept, old, new)
        assert same if covered(old, new_ids) and (is_merged or 0 not in old) else not same or not is_merged
        comparison = TokenizerComparison(before, after, new_ids, tokenizer.unknown_id, covers_unknown=is_merged)
        found = comparison.agreement([text])
        assert found.mismatches == 0
        event(f"{tokenizer.kind} covered: {found.covered == 1}")


def test_an_added_token_that_merges_lead_to_keeps_its_parts(tmp_path: Path) -> None:
    """As a word of its own "ab" is the added token; in "cab" it is merged, of "a" and "b"."""
    before = Tokenizer(BPE({"c": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    before.add_tokens([AddedToken("ab", single_word=True), AddedToken("[PAD]", special=True)])
    before.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TokenizerFile.read(tmp_path / "tokenizer.json")
    assert [tokenizer.parts(own) for own in range(5)] == [{0}, {1}, {2}, {1, 2, 3}, {4}]
    tokenizer.write(tmp_path / "small.json", tokenizer.with_parts(np.array([0, 3, 4])))
    after = Tokenizer.from_file(str(tmp_path / "small.json"))
    assert before.encode("ab cab").tokens == after.encode("ab cab").tokens == ["ab", "c", "ab"]


UNLIKE = {"[UNK]": 0, "a": 1, "ab": 2, "##bc": 3}


def test_a_word_that_had_no_pieces_may_get_some(tmp_path: Path) -> None:
    """Of "abc" the longest start is "ab", after which nothing fits; without "ab" it is "a", and "##bc" fits."""
    before = Tokenizer(WordPiece(UNLIKE, unk_token="[UNK]"))
    before.save(str(tmp_path / "tokenizer.json"))
    tokenizer, kept = TokenizerFile.read(tmp_path / "tokenizer.json"), np.array([0, 1, 3])
    tokenizer.write(tmp_path / "small.json", kept)
    after = Tokenizer.from_file(str(tmp_path / "small.json"))
    assert (before.encode("abc").tokens, after.encode("abc").tokens) == (["[UNK]"], ["a", "##bc"])
    comparison = TokenizerComparison(before, after, successors(kept, 4), tokenizer.unknown_id, covers_unknown=False)
    found = comparison.agreement(["abc"])
    assert (found.covered, found.mismatches, found.unknown_characters_before) == (0, 0, 3)


def covered(old: list[int], new_ids: np.ndarray) -> bool:
    return bool((new_ids[old] != DROPPED).all())


def pieces(tokenizer: TokenizerFile, kept: np.ndarray, old: list[int], new: list[int]) -> bool:
    """Whether both segmentations are the same pieces: the same check without the map of ids."""
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
    if not pin:
        with pytest.raises(RuntimeError, match="1 covered texts of pairs are segmented differently"):
            compare_corpora(InitConfig(), [corpus("pairs", ["abc", "z"])], comparison, {"pairs": 2})


def corpus(name: str, texts: list[str]) -> Any:
    batches = [("ru", pyarrow.array(texts[:3])), ("en", pyarrow.array(texts[3:]))]
    return SimpleNamespace(name=name, texts=lambda purpose: batches)


@pytest.fixture
def without_ab_and_c(tmp_path: Path) -> TokenizerComparison:
    scores = {"▁": -1.0, "a": -2.0, "b": -2.0, "ab": -1.0, "c": -3.0}
    tokenizer, kept = shrunk(scores, frozenset("▁ab"), tmp_path, pin=False)
    backends = (Tokenizer.from_file(str(tmp_path / file)) for file in ("tokenizer.json", "small.json"))
    return TokenizerComparison(*backends, successors(kept, tokenizer.size), tokenizer.unknown_id)


def test_an_agreement_counts_texts_pieces_and_unknown_characters(without_ab_and_c: TokenizerComparison) -> None:
    """▁a▁b and ▁b a are unchanged, ▁ab becomes ▁a b, and in ▁a▁<ddd>▁c the c becomes unknown."""
    found = without_ab_and_c.agreement(["a b", "ab", "a ddd c", "ba"], examples=1)
    assert found == Agreement(4, 2, 0, 4 + 2 + 6 + 3, 4 + 3 + 6 + 3, 3, 4, ["a b"]) and found.coverage == 0.5


def test_an_even_sample_is_at_most_as_large_as_requested_and_all_corpora_yield_examples(
    without_ab_and_c: TokenizerComparison,
) -> None:
    corpora = [corpus("one", [each * "a" for each in range(1, 8)]), corpus("two", ["b", "ba", "c"])]
    config = InitConfig(certified_texts=3, hidden_state_texts=3)
    found = compare_corpora(config, corpora, without_ab_and_c, {"one": 7, "two": 3})
    assert {name: each.compared for name, each in found.items()} == {"one": 3, "two": 3}
    assert {name: each.examples for name, each in found.items()} == {"one": ["a", "aaaa"], "two": ["b", "ba"]}


def test_shares_are_of_the_pieces_that_occur() -> None:
    shares = language_shares({"ru": np.array([4, 0, 1, 5]), "en": np.zeros(4, np.int64)}, np.array([0, 1, 3]))
    names = "pieces", "pieces_kept", "occurrences", "occurrences_kept"
    assert [tuple(shares[language][name] for name in names) for language in ("ru", "en")] == [(3, 2, 10, 0.9), (0,) * 4]


def test_hidden_states_that_differ_are_an_error_and_texts_are_cut_at_the_model_s_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, other = ([torch.zeros(16, 5, 4), torch.zeros(2, 3, 4)] for _ in range(2))
    other[1][1, 2, 3] = -0.25
    states = {Path("base"): base, Path("other"): other}
    made = "training.vocabulary.certificate._hidden_states"
    monkeypatch.setattr(made, lambda folder, texts, length: (states[folder], len(texts) * length))
    for most, tokens in ((8, 18 * 8), (8192, 18 * 128)):
        found = compare_hidden_states(Path("base"), Path("base"), ["text"] * 18, most)
        assert found == {"texts": 18, "tokens": tokens, "bitwise_equal": True, "largest_difference": 0.0}
    with pytest.raises(RuntimeError, match=r"hidden states of covered texts differ by up to 0\.25"):
        compare_hidden_states(Path("base"), Path("other"), ["text"] * 18, 8)
