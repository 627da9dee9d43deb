"""Which pieces each rule keeps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import XLMRobertaModel

from configs.schema.init import BaseConfig, InitConfig
from pipeline.core.errors import UserError
from pipeline.core.model_folder import read_tokenizer
from tests.support.small_bases import tiny_base, true_tokenizer
from training.bases.random_model import model_config
from training.vocabulary.build import needed_ids
from training.vocabulary.selection import OTHER, characters_of, covering_ids, cut, scripts_of, select
from training.vocabulary.tokenizer_file import TokenizerFile

NOTHING = np.array([], dtype=np.int64)
SPECIALS = {0, 1, 2, 3}


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerFile:
    return TokenizerFile.read(tiny_base() / "tokenizer.json")


def counts(tokenizer: TokenizerFile, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 14, tokenizer.size) * (rng.random(tokenizer.size) < 0.5)


def notebook_by_hand(occurrences: dict[str, np.ndarray], least: dict[str, int], size: int) -> set[int]:
    """The original notebook's rule, written as its loops."""
    kept = {*SPECIALS, size - 1}
    for language, count in occurrences.items():
        for old in range(size):
            if count[old] >= least[language] or (count[old] > 0 and old <= 100):
                kept.add(old)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_the_notebook_s_rule_is_reproduced_and_the_minimum_pinned(tokenizer: TokenizerFile, seed: int) -> None:
    occurrences = {"ru": counts(tokenizer, seed), "en": counts(tokenizer, seed + 100)}
    config = InitConfig(rule="notebook", min_counts={"ru": 3, "en": 10})
    selection = select(tokenizer, occurrences, config, ["ru", "en"], NOTHING)
    expected = notebook_by_hand(occurrences, config.min_counts, tokenizer.size)
    assert set(selection.kept.tolist()) == expected | {selection.pinned}
    assert tokenizer.scores[selection.pinned] == tokenizer.scores.min()
    assert (np.diff(selection.kept) > 0).all()


def test_the_pinned_piece_is_one_that_is_kept_anyway_where_there_is_one() -> None:
    tokenizer = TokenizerFile.read(true_tokenizer())
    lowest = np.flatnonzero(tokenizer.scores == tokenizer.scores.min())
    assert len(lowest) > 1
    occurrences = {"ru": np.zeros(tokenizer.size, dtype=np.int64)}
    occurrences["ru"][lowest[-1]] = 5
    config = InitConfig(rule="notebook", min_counts={"ru": 3})
    assert select(tokenizer, occurrences, config, ["ru"], NOTHING).pinned == lowest[-1]
    occurrences["ru"][:] = 0
    selection = select(tokenizer, occurrences, config, ["ru"], NOTHING)
    assert selection.pinned == lowest[0] and selection.pinned in selection.kept


def test_ids_before_the_padding_are_kept(tmp_path: Path) -> None:
    """For example CamemBERT's unused <s>NOTUSED: without it <pad> would move, and a RoBERTa's positions with it."""
    document = json.loads((tiny_base() / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = document["model"]["vocab"]
    pieces[0], pieces[50] = ["<s>NOTUSED", 0.0], pieces[0]
    document["added_tokens"][0]["id"] = 50
    shutil.copytree(tiny_base(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = TokenizerFile.read(tmp_path / "tokenizer.json")
    nothing = {"ru": np.zeros(tokenizer.size, dtype=np.int64)}
    needed = needed_ids(tmp_path, read_tokenizer(tmp_path / "tokenizer.json"))
    selection = select(tokenizer, nothing, InitConfig(rule="notebook"), ["ru"], needed)
    assert selection.kept[:5].tolist() == [0, 1, 2, 3, 50]


def test_what_every_text_begins_and_ends_with_is_kept_also_if_it_is_an_ordinary_piece() -> None:
    tokenizer = read_tokenizer(tiny_base() / "tokenizer.json")
    tokenizer.post_processor = TemplateProcessing("▁на $A", special_tokens=[("▁на", tokenizer.token_to_id("▁на"))])
    assert tokenizer.token_to_id("▁на") in needed_ids(tiny_base(), tokenizer)


def test_closure_keeps_all_single_characters_of_the_scripts() -> None:
    tokenizer = TokenizerFile.read(true_tokenizer())
    occurrences = {"ru": np.zeros(tokenizer.size, dtype=np.int64)}
    selection = select(tokenizer, occurrences, InitConfig(), ["ru"], NOTHING)
    kept = {tokenizer.pieces[old] for old in selection.kept}
    single = {piece for piece in tokenizer.pieces if len(piece) == 1}
    assert kept >= single & set("абвгґѓжқңүіїєўӣԑёъыѣѳ0123456789.,:;!?«»—…№€$%+=<>@#▁½²😀™ʼˈ\u00ad\u202a\u2060")
    assert not kept & single & set("漢字ひらงაαωЖabc".replace("Ж", ""))
    wider = select(tokenizer, occurrences, InitConfig(scripts=["Greek"]), ["ru", "en"], NOTHING)
    kept = {tokenizer.pieces[old] for old in wider.kept}
    assert kept >= single & set("αωάabczéñßø") and not kept & single & set("漢字")


def test_coverage_takes_the_fewest_ids_that_reach_it() -> None:
    count = np.array([0, 5, 80, 10, 0, 5])
    assert covering_ids(count, 0.5).tolist() == [2]
    assert covering_ids(count, 0.9).tolist() == [2, 3]
    assert covering_ids(count, 0.91).tolist() == [2, 3, 1]
    assert covering_ids(count, 1.0).tolist() == [2, 3, 1, 5]
    assert covering_ids(np.zeros(4, dtype=np.int64), 0.9).tolist() == []


def test_the_coverage_target_is_met_for_every_language(tokenizer: TokenizerFile) -> None:
    occurrences = {"ru": counts(tokenizer, 1), "en": counts(tokenizer, 2)}
    selection = select(tokenizer, occurrences, InitConfig(coverage=0.8), ["ru", "en"], NOTHING)
    for count in occurrences.values():
        assert 0.8 <= count[selection.kept].sum() / count.sum() < 0.99


@pytest.mark.parametrize("step", ["normalizer", "pre_tokenizer"])
def test_of_pieces_of_bytes_those_are_characters_that_are_whole_ones(step: str, tmp_path: Path) -> None:
    pieces = [*sorted(ByteLevel.alphabet()), "Ð°", "ä¸", "ä¸Ń", "Ð°Ð"]
    tokenizer = Tokenizer(BPE({piece: own for own, piece in enumerate(pieces)}, []))
    setattr(tokenizer, step, {"normalizer": normalizers, "pre_tokenizer": pre_tokenizers}[step].ByteLevel())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = TokenizerFile.read(tmp_path / "tokenizer.json")
    assert read.characters[-4:] == ["а", "", "中", ""]
    kept = select(read, {"ru": np.zeros(260, dtype=np.int64)}, InitConfig(), ["ru"], NOTHING).kept
    assert kept.tolist() == [*range(257)]


def test_the_bytes_of_unknown_characters_are_kept_of_a_unigram_tokenizer_too(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("a", -1.0), ("яя", -2.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True)).save(str(tmp_path / "tokenizer.json"))
    nothing = {"ru": np.zeros(259, dtype=np.int64)}
    selection = select(TokenizerFile.read(tmp_path / "tokenizer.json"), nothing, InitConfig(), ["ru"], NOTHING)
    assert selection.kept.tolist() == [0, *range(3, 259)] and selection.reasons["bytes"] == 256


def test_max_size_keeps_the_fixed_ids_and_the_most_frequent_others(tokenizer: TokenizerFile) -> None:
    occurrences = {"ru": counts(tokenizer, 3)}
    everything = select(tokenizer, occurrences, InitConfig(), ["ru"], NOTHING)
    fixed = select(tokenizer, {"ru": np.zeros_like(occurrences["ru"])}, InitConfig(), ["ru"], NOTHING)
    size = (len(everything.kept) + len(fixed.kept)) // 2
    cut = select(tokenizer, occurrences, InitConfig(max_size=size), ["ru"], NOTHING)
    assert len(cut.kept) == size and set(fixed.kept) <= set(cut.kept) <= set(everything.kept)
    dropped = np.setdiff1d(everything.kept, cut.kept)
    chosen = np.setdiff1d(cut.kept, fixed.kept)
    assert occurrences["ru"][dropped].max() <= occurrences["ru"][chosen].min()


def test_max_size_compares_shares_within_each_language_and_of_other_scripts_relative_to_all_languages(
    tokenizer: TokenizerFile,
) -> None:
    """ru has 0.9 and 0.1, en 0.2 and 0.8; 33 of other scripts relative to 110 of both languages are 0.3."""
    occurrences = {"ru": [0, 90, 10, 0, 0, 0], "en": [0, 0, 0, 2, 8, 0], OTHER: [0, 0, 0, 0, 0, 33]}
    each = {language: np.array(count) for language, count in occurrences.items()}
    found = [cut(np.arange(6), np.array([0]), each, size, tokenizer).tolist() for size in range(1, 6)]
    assert found == [[0], [0, 1], [0, 1, 4], [0, 1, 4, 5], [0, 1, 3, 4, 5]]


def test_pieces_of_other_scripts_need_the_strictest_count_and_get_little_weight(tokenizer: TokenizerFile) -> None:
    nothing, many = np.zeros(tokenizer.size, dtype=np.int64), counts(tokenizer, 5) * 1000
    others = nothing.copy()
    others[[300, 301]] = 3, 10
    for thresholds in ({"min_counts": {"ru": 3, "en": 10}}, {"min_counts": {"ru": 3}, "min_count": 10}):
        config, each = InitConfig(rule="notebook", **thresholds), {"ru": nothing, "en": others, OTHER: others}
        kept = select(tokenizer, each, config, ["ru", "en"], NOTHING).kept
        assert 301 in kept and 300 not in kept
    assert {300, 301} <= set(select(tokenizer, {"ru": nothing, OTHER: others}, InitConfig(), ["ru"], NOTHING).kept)
    many[[300, 301]] = 0
    size = len(select(tokenizer, {"ru": many, OTHER: others}, InitConfig(), ["ru"], NOTHING).kept) - 2
    cut = select(tokenizer, {"ru": many, OTHER: others}, InitConfig(max_size=size), ["ru"], NOTHING).kept
    assert not {300, 301} & set(cut)


def test_pieces_of_the_prompts_are_kept(tokenizer: TokenizerFile) -> None:
    occurrences = {"ru": np.zeros(tokenizer.size, dtype=np.int64)}
    needed = np.array([500, 700])
    for rule in ("closure", "notebook"):
        assert set(needed) <= set(select(tokenizer, occurrences, InitConfig(rule=rule), ["ru"], needed).kept)


def test_a_size_too_small_for_what_must_be_kept_is_an_error(tokenizer: TokenizerFile) -> None:
    occurrences = {"ru": counts(tokenizer, 4)}
    with pytest.raises(UserError, match=r"max_size 20 would drop special tokens.*raise it to at least"):
        select(tokenizer, occurrences, InitConfig(max_size=20), ["ru"], NOTHING)


def test_the_card_s_arithmetic_holds() -> None:
    """46,166 ids on bge-m3's shape are 359,026,688 parameters, 63.24 % of the original's 567,754,752."""
    config = BaseConfig(name="bge_m3", hidden=1024, layers=24, max_length=8192)

    def parameters(vocabulary: int) -> int:
        with torch.device("meta"):
            return XLMRobertaModel(model_config(config, vocabulary)).num_parameters()

    assert parameters(250_002) == 567_754_752
    assert parameters(46_166) == 359_026_688


def test_scripts_of_languages() -> None:
    assert scripts_of(["kk", "ru", "ja"]) == ["Cyrillic", "Hiragana", "Katakana", "Han"]
    assert scripts_of(["xx"], ["Greek"]) == ["Greek"]
    with pytest.raises(UserError, match=r"script of language xx is not known"):
        scripts_of(["xx"])
    with pytest.raises(UserError, match=r"no such script: Klingonian"):
        scripts_of(["ru"], ["Klingonian"])
    assert all(map(characters_of(["Cyrillic"]).fullmatch, "ң7\u0301"))  # a stress mark goes with any script
    assert not characters_of(["Cyrillic"]).fullmatch("z")


def test_numbers_are_written_as_in_the_file(tmp_path: Path, tokenizer: TokenizerFile) -> None:
    source = true_tokenizer().read_text(encoding="utf-8")
    true = TokenizerFile.read(true_tokenizer())
    kept = np.array([0, 1, 2, 3, *range(4, 200_000, 997), 249_999, 250_001])
    true.write(tmp_path / "tokenizer.json", kept)
    written = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    document = json.loads(written)
    for old, (piece, score) in zip(kept, document["model"]["vocab"], strict=True):
        assert (piece, score) == (true.pieces[old], true.scores[old])
        assert f"{json.dumps(piece, ensure_ascii=False)},{float(true.scores[old])!r}]" in written
        assert repr(float(true.scores[old])) in source
    rest, expected = document, json.loads(source)
    for each in (rest, expected):
        del each["model"]["vocab"]
    expected["added_tokens"][-1]["id"] = len(kept) - 1
    assert rest == expected
