"""Counting by words equals encoding every text, piece by piece."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from configs.schema.init import CorpusConfig
from pipeline.core.errors import UserError
from tests.support.small_bases import tiny_base, true_tokenizer
from training.bases.random_model import sample_texts
from training.bases.sources import SAMPLES
from training.vocabulary.corpora import Corpus
from training.vocabulary.counting import WordCounter, count_pieces, cuts_at_spaces, piece_counts

ODD = [
    "", " ", "  ", " a", "a ", "  a  b  ", "a\tb\nc\r\nd \n e", "x\u00a0 y \u00a0z\u00a0", "\u2003a\u2003 \u2003",
    "a  b", "b  a", "a\u0085b \u0085 c", "… ‥ a‥ ‥b", "e\u0301 \u0301e \u0301", "й и\u0306 \u0306",
    "😀 👩\u200d👩\u200d👧 \u200d x\ufe0f \ufe0f",
    "a ´b ¨ ¨c", "▁ ▁a b▁ ▁▁", "\u200b \u200ba \ufeffb", "дом <mask> дом<s>x </s> <pad>", "＜mask＞ <mask", "ｶﾞ ﾞ ﾟ",
    "слово" * 400, "a" * 3000, "ำ กำ ำ", "\u0e33a", "क् षि ि", "\x01 \x7f a\x00b", "½ ﬁ Ⅷ ㎏", "\u202eabc \u202e",
]  # fmt: skip
CHARACTERS = st.sampled_from("abдом,.—«1 \u00a0\t\n▁\u0301\u0306\u200d\u200b😀…´<>ำ½\u0085") | st.characters(
    codec="utf-8"
)
TEXTS = st.lists(st.text(CHARACTERS, max_size=25), max_size=8)


def brute_force(tokenizer: Tokenizer, texts: list[str], size: int) -> np.ndarray:
    counts = np.zeros(size, dtype=np.int64)
    for text in texts:
        np.add.at(counts, tokenizer.encode(text, add_special_tokens=False).ids, 1)
    return counts


def by_words(tokenizer: Tokenizer, texts: list[str], size: int) -> np.ndarray:
    counter = WordCounter(tokenizer)
    counter.add(texts)
    assert counter.texts == len(set(texts))
    return piece_counts(tokenizer, counter.words(), counter.whole, size)


def small(
    pre_tokenizer: object, normalizer: object | None = None, normalized: bool = False, added: tuple[str, ...] = ("<s>",)
) -> Tokenizer:
    """A Unigram tokenizer over a few letters, with other rules before the model."""
    pieces = ["<unk>", "▁", "a", "b", "ab", "▁a", "д", "о", "м", "дом", "▁дом", "1", "<s>"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(place)) for place, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, normalized=normalized, special=True) for token in added])
    return tokenizer


@functools.cache
def true() -> Tokenizer:
    """XLM-R's own, whose file takes two seconds to read."""
    return Tokenizer.from_file(str(true_tokenizer()))


METASPACE = pre_tokenizers.Metaspace()
SMALL = {
    "spaces collapsed": small(
        METASPACE, normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    ),
    "spaces kept": small(METASPACE),
    "split at white space": small(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE])),
    "BERT's": small(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()),
    "stripped": small(METASPACE, normalizers.Strip(left=False, right=True)),
    "first word alone marked": small(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "no word marked": small(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "not split": small(pre_tokenizers.Metaspace(split=False)),
    "another replacement": small(METASPACE, normalizers.Replace("б ", "б")),
    "specials in normalised text": small(METASPACE, normalizers.NFKC(), normalized=True),
    "no added tokens": small(METASPACE, added=()),
    "an added token of two words": small(METASPACE, added=("a дом",)),
    "punctuation": small(pre_tokenizers.Punctuation()),
}


@pytest.mark.parametrize("name", SMALL)
@given(texts=TEXTS)
@example(texts=ODD)
@settings(max_examples=10, deadline=None)
def test_counts_are_those_of_encoding_every_text(name: str, texts: list[str]) -> None:
    tokenizer = SMALL[name]
    np.testing.assert_array_equal(by_words(tokenizer, texts, 20), brute_force(tokenizer, list(set(texts)), 20))


@given(texts=TEXTS)
@example(texts=ODD)
@settings(max_examples=10, deadline=None)
def test_counts_of_the_hub_s_layout_are_those_of_encoding_every_text(texts: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    np.testing.assert_array_equal(by_words(tokenizer, texts, 1200), brute_force(tokenizer, list(set(texts)), 1200))


def test_words_summed_early_or_segmented_apart_are_counted_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("ROWS", 2), ("JOINED", 1), ("ENCODED", 2)):
        monkeypatch.setattr(f"training.vocabulary.counting.{name}", size)
    counter, texts = WordCounter(SMALL["spaces kept"]), ["a b дом", "b a", "дом м", "ab дом b"]
    for text in texts:
        counter.add([text])
    found = piece_counts(SMALL["spaces kept"], counter.words(), counter.whole, 20)
    np.testing.assert_array_equal(found, brute_force(SMALL["spaces kept"], texts, 20))


def test_many_distinct_words_are_summed_as_their_number_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.vocabulary.counting.ROWS", 2)
    counter, sums = WordCounter(SMALL["spaces kept"]), list[int]()
    words = counter.words

    def added_up() -> object:
        sums.append(1)
        return words()

    monkeypatch.setattr(counter, "words", added_up)
    for number in range(64):
        counter.add([f"{number}a {number}b"])
    assert len(words()) == 128 and len(sums) < 10


def test_only_tokenizers_that_never_look_across_a_space_are_cut() -> None:
    cut = [name for name, tokenizer in SMALL.items() if cuts_at_spaces(tokenizer)]
    first = ["spaces collapsed", "spaces kept", "split at white space", "BERT's", "stripped"]
    assert cut == [*first, "first word alone marked", "no added tokens"]
    assert cuts_at_spaces(Tokenizer.from_file(str(tiny_base() / "tokenizer.json")))
    assert cuts_at_spaces(true())


def test_counts_of_the_true_tokenizer_on_odd_and_sample_texts() -> None:
    tokenizer = true()
    texts = [*ODD, *sample_texts(SAMPLES)]
    np.testing.assert_array_equal(
        by_words(tokenizer, texts, 250_002), brute_force(tokenizer, list(set(texts)), 250_002)
    )


@pytest.mark.real_data
def test_counts_of_the_true_tokenizer_on_real_texts(shared_data: Path) -> None:
    tokenizer = true()
    texts = (shared_data / "encodechka" / "toxic_test.csv").read_text(encoding="utf-8").splitlines()
    lines = (shared_data / "training" / "software_docs.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    texts += [json.loads(line)["passage"] for line in lines]
    np.testing.assert_array_equal(
        by_words(tokenizer, texts, 250_002), brute_force(tokenizer, list(set(texts)), 250_002)
    )


def text_corpus(tmp_path: Path, name: str, text: str, language: str) -> Corpus:
    path = tmp_path / f"{name}.txt"
    path.write_text(text, encoding="utf-8")
    return Corpus(name, CorpusConfig(kind="text", language=language, files=[str(path)]), (path,), "local")


def test_languages_are_counted_separately_each_with_its_texts_ends(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    corpora = [
        text_corpus(tmp_path, "ru", "дом\nдом лес\n\n", "ru"),
        text_corpus(tmp_path, "mixed", "лес in London, 25\n", "script"),
        text_corpus(tmp_path, "de", "Haus\n", "de"),
    ]
    found = count_pieces(corpora, tokenizer, ["ru", "en"], 1200)
    encoded = [tokenizer.encode(text).ids for text in ("дом", "дом лес", "лес 25")]
    expected = np.bincount(np.concatenate(encoded), minlength=1200)
    np.testing.assert_array_equal(found.occurrences["ru"], expected)
    english = brute_force(tokenizer, ["in London,"], 1200)
    np.testing.assert_array_equal(found.occurrences["en"], english)
    assert found.texts == {"ru": 2, "mixed": 1, "de": 1}


def test_a_text_counts_once_however_often_it_occurs_in_the_corpora(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    repeated = "старый дом у реки\n" * 100 + "лес\n"
    corpora = [
        text_corpus(tmp_path, "a", repeated, "ru"),
        text_corpus(tmp_path, "b", "лес\nстарый дом у реки\nпоезд\n", "ru"),
        text_corpus(tmp_path, "mixed", "поезд\n" * 7, "script"),
    ]
    found = count_pieces(corpora, tokenizer, ["ru"], 1200)
    once = brute_force(tokenizer, ["старый дом у реки", "лес", "поезд", "поезд"], 1200)  # a mixed text differs
    once[[0, 2]] += 4
    np.testing.assert_array_equal(found.occurrences["ru"], once)
    assert found.texts == {"a": 101, "b": 3, "mixed": 7}


def test_texts_that_are_not_cut_count_for_their_first_known_script_also_where_they_are_summed_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.vocabulary.counting.WHOLE", 1)
    tokenizer, texts = SMALL["not split"], ["дом ab", "ab a", "дом", "b a", "дом ab", "1"]
    corpora = [text_corpus(tmp_path, "mixed", "\n".join(texts), "script")]
    found = count_pieces(corpora, tokenizer, ["ru", "en"], 20).occurrences
    np.testing.assert_array_equal(found["ru"], brute_force(tokenizer, ["дом ab", "дом", "1"], 20))
    np.testing.assert_array_equal(found["en"], brute_force(tokenizer, ["ab a", "b a"], 20))


def test_words_of_foreign_scripts_count_for_no_language(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    text = "дом γάτα 25 iPhone-чехол 猫 — in 5µ"
    found = count_pieces([text_corpus(tmp_path, "mixed", f"{text}\n", "script")], tokenizer, ["ru"], 1200)
    own = brute_force(tokenizer, ["дом 25 iPhone-чехол — 5µ"], 1200)
    own[[0, 2]] += 1
    np.testing.assert_array_equal(found.occurrences["ru"], own)
    np.testing.assert_array_equal(found.others, brute_force(tokenizer, ["γάτα 猫 in"], 1200))


def test_languages_of_one_script_share_the_words_of_a_mixed_corpus(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    corpora = [text_corpus(tmp_path, "mixed", "үлкен дом in London\n", "script")]
    found = count_pieces(corpora, tokenizer, ["kk", "ru", "en"], 1200).occurrences
    shared = brute_force(tokenizer, ["үлкен дом"], 1200)
    np.testing.assert_array_equal(found["ru"], shared)
    shared[[0, 2]] += 1  # the ends of texts, with the first language
    np.testing.assert_array_equal(found["kk"], shared)
    np.testing.assert_array_equal(found["en"], brute_force(tokenizer, ["in London"], 1200))


def test_a_language_of_several_scripts_has_the_words_of_each(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    corpora = [text_corpus(tmp_path, "mixed", "reka i grad дом 猫\n", "script")]
    found = count_pieces(corpora, tokenizer, ["ru", "sr"], 1200)
    np.testing.assert_array_equal(found.occurrences["sr"], brute_force(tokenizer, ["reka i grad", "дом"], 1200))
    np.testing.assert_array_equal(found.others, brute_force(tokenizer, ["猫"], 1200))


def test_an_unknown_language_has_the_words_of_the_script_that_the_config_names(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    corpora = [text_corpus(tmp_path, "mixed", "дом \u0a98\u0ab0 лес\n", "script")]
    found = count_pieces(corpora, tokenizer, ["ru", "gu"], 1200, ["Gujarati"]).occurrences
    np.testing.assert_array_equal(found["gu"], brute_force(tokenizer, ["\u0a98\u0ab0"], 1200))


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    with pytest.raises(UserError, match=r"a corpus has no texts.*empty"):
        count_pieces([text_corpus(tmp_path, "empty", "\n\n", "ru")], tokenizer, ["ru"], 1200)


def test_a_language_without_texts_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    with pytest.raises(UserError, match=r"no text of language en"):
        count_pieces([text_corpus(tmp_path, "ru", "дом\n", "script")], tokenizer, ["ru", "en"], 1200)
