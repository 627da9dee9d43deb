"""The shrunk folder: its files agree, and everything that does not depend on the vocabulary is unchanged."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.core.errors import UserError
from tests.support.small_bases import tiny_base
from training.bases.random_model import sample_texts
from training.bases.sources import SAMPLES
from training.vocabulary.shrinking import Sizes, shrink, write_id_map
from training.vocabulary.tokenizer_file import TokenizerFile, shrink_sentencepiece

WORDS = "embeddings.word_embeddings.weight"
KEPT = np.array([*range(4), *range(4, 1100, 3), 1198, 1199], dtype=np.int64)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The tiny base with heads and a manifest."""
    import torch

    folder = tmp_path / "base"
    shutil.copytree(tiny_base(), folder)
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        torch.save({"weight": torch.ones(1, 32), "bias": torch.zeros(1)}, folder / name)
    (folder / "manifest.json").write_text("{}")
    return folder


def shrunk(base: Path, kept: np.ndarray = KEPT) -> tuple[Path, Sizes]:
    target = base.with_name("shrunk")
    target.mkdir()
    return target, shrink(base, target, TokenizerFile.read(base / "tokenizer.json"), kept)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_rows_are_copied_and_all_other_tensors_are_the_same(base: Path) -> None:
    target, sizes = shrunk(base)
    before, after = tensors(base), tensors(target)
    assert list(before) == list(after)
    for name, tensor in before.items():
        expected = tensor[KEPT] if name == WORDS else tensor
        assert after[name].tobytes() == expected.tobytes()
    assert sizes.vocabulary_before == 1200 and sizes.vocabulary_after == len(KEPT) and sizes.padding_rows_dropped == 0
    assert sizes.parameters_before - sizes.parameters_after == (1200 - len(KEPT)) * 32
    assert sizes.parameters_after == sum(tensor.size for tensor in after.values())


def test_ids_are_renumbered_wherever_they_are_written(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"mask_token_id": 1199, "sep_token_id": None}))
    target, _ = shrunk(base)
    last = len(KEPT) - 1
    config = json.loads((target / "config.json").read_text())
    assert config["mask_token_id"] == last and config["sep_token_id"] is None
    assert config["vocab_size"] == len(KEPT) and (config["pad_token_id"], config["eos_token_id"]) == (1, 2)
    tokenizer = TokenizerFile.read(target / "tokenizer.json")
    assert tokenizer.special_ids == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": last}


@pytest.mark.parametrize("wrong", [5, 1200, [2]])
def test_an_id_in_the_config_that_is_not_a_special_token_is_an_error(base: Path, wrong: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"mask_token_id": wrong}))
    with pytest.raises(UserError, match=r"mask_token_id is .*, which is no special token .*config.json"):
        shrunk(base)


def test_the_id_map_has_the_score_and_the_counts_of_each_old_id(base: Path) -> None:
    document = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    counts, path = np.arange(1200) ** 2, base / "id_map.parquet"
    write_id_map(path, TokenizerFile.read(base / "tokenizer.json"), KEPT, {"ru": counts})
    vocabulary = [*document["model"]["vocab"], ["<mask>", 0.0]]
    expected = [(old, new, *vocabulary[old], old**2) for new, old in enumerate(KEPT.tolist())]
    assert pl.read_parquet(path).rows() == expected


def test_modules_and_heads_are_copied_and_the_manifest_is_not(base: Path) -> None:
    target, _ = shrunk(base)
    names = ("modules.json", "1_Pooling/config.json", "2_Normalize/config.json", "sentence_bert_config.json")
    for name in (
        *names,
        "config_sentence_transformers.json",
        "tokenizer_config.json",
        "sparse_linear.pt",
        "colbert_linear.pt",
    ):
        assert (target / name).read_bytes() == (base / name).read_bytes()
    assert not (target / "manifest.json").exists()


def test_both_tokenizer_files_return_the_same_ids(base: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    target, _ = shrunk(base)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    processor = SentencePieceProcessor(model_file=str(target / "sentencepiece.bpe.model"))
    assert tokenizer.get_vocab_size() == len(KEPT) and processor.vocab_size() == len(KEPT) - 2
    for text in [text for text in sample_texts(SAMPLES) if "<" not in text][:300]:
        indices = processor.encode(text)
        assert [index + 1 if index else 3 for index in indices] == tokenizer.encode(text).ids[1:-1]


def test_a_base_that_an_earlier_version_saved_as_torch_s_file_must_be_rebuilt(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no weights in safetensors.*if a stage made the folder, remove it"):
        shrunk(base)


def test_shards_become_one_file(base: Path) -> None:
    from safetensors.numpy import save_file

    state = tensors(base)
    (base / "model.safetensors").unlink()
    first = {name: tensor for name, tensor in state.items() if name == WORDS}
    second = {name: tensor for name, tensor in state.items() if name != WORDS}
    shards = {"model-00001-of-00002.safetensors": first, "rest.safetensors": second}  # the index may use any names
    for name, part in shards.items():
        save_file(part, base / name)
    index = {"weight_map": {tensor: name for name, part in shards.items() for tensor in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    target, _ = shrunk(base)
    after = tensors(target)
    np.testing.assert_array_equal(after[WORDS], state[WORDS][KEPT])
    assert after.keys() == state.keys()
    assert [path.name for path in target.glob("*.safetensors*")] == ["model.safetensors"]


def rows_changed(base: Path, rows: int) -> None:
    from safetensors.numpy import save_file

    state = tensors(base)
    state[WORDS] = np.resize(state[WORDS], (rows, 32))
    state["embeddings.position_ids"] = np.arange(514)  # a buffer, as in older checkpoints
    save_file(state, base / "model.safetensors")


def test_padding_rows_of_the_embedding_are_dropped_and_reported(base: Path) -> None:
    expected = tensors(base)[WORDS][KEPT]
    rows_changed(base, 1235)
    target, sizes = shrunk(base)
    assert (sizes.embedding_rows_before, sizes.padding_rows_dropped) == (1235, 35)
    after = tensors(target)
    np.testing.assert_array_equal(after[WORDS], expected)
    assert sizes.parameters_after == sum(tensor.size for tensor in after.values() if tensor.dtype == np.float32)


@pytest.mark.parametrize("rows", [1199, 1200 + 1024])
def test_an_embedding_of_another_size_is_an_error(base: Path, rows: int) -> None:
    rows_changed(base, rows)
    with pytest.raises(UserError, match=f"the tokenizer has 1,200 ids, but the embedding has {rows:,} rows"):
        shrunk(base)


def test_a_model_without_a_word_embedding_is_an_error(base: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"0 word embeddings"):
        shrunk(base)


def changed_tokenizer(base: Path, **changes: object) -> Path:
    path = base / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"] |= changes
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("model", [{"type": "WordLevel"}, {"type": "BPE", "end_of_word_suffix": "</w>"}])
def test_a_tokenizer_of_another_kind_is_an_error(base: Path, model: dict[str, str]) -> None:
    path = changed_tokenizer(base, **model)
    with pytest.raises(UserError, match=f"neither Unigram, WordPiece nor plain BPE, but {model['type']}"):
        TokenizerFile.read(path)


UNIGRAM = b'{"model": {"type": "Unigram", "unk_id": 3, "vocab": %s}, "added_tokens": []}'


BPE = b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": %s}, "pre_tokenizer": null, "added_tokens": []}'


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b'{"model": null}', b"[]", b"\xff\xfe", UNIGRAM % b'["a"]', UNIGRAM % b"[3]", UNIGRAM % b"null"),
        *((UNIGRAM % b"[]").replace(b"3", unknown) for unknown in (b"null", b"7")),
        *(BPE % merges for merges in (b'["a"]', b"[3]", b'[["a"]]')),
    ],
)
def test_a_broken_tokenizer_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer"):
        TokenizerFile.read(tmp_path / "tokenizer.json")


def test_files_of_two_tokenizers_are_refused(base: Path) -> None:
    document = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["vocab"][10][1] -= 1.0
    (base / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=r"sentencepiece.bpe.model and tokenizer.json differ"):
        shrunk(base)


def test_user_defined_pieces_are_refused(base: Path) -> None:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    path = base / "sentencepiece.bpe.model"
    model = ModelProto.FromString(path.read_bytes())
    model.pieces[7].type = ModelProto.SentencePiece.USER_DEFINED
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"piece 7 of the SentencePiece model"):
        shrink_sentencepiece(path, base / "x", TokenizerFile.read(base / "tokenizer.json"), KEPT)


def test_only_pieces_leave_the_sentencepiece_file(base: Path) -> None:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    target, _ = shrunk(base)
    before = ModelProto.FromString((base / "sentencepiece.bpe.model").read_bytes())
    after = ModelProto.FromString((target / "sentencepiece.bpe.model").read_bytes())
    assert [piece.piece for piece in after.pieces][:3] == ["<unk>", "<s>", "</s>"]
    assert [piece.piece for piece in after.pieces[3:]] == [before.pieces[old - 1].piece for old in KEPT[4:-1]]
    del before.pieces[:], after.pieces[:]
    assert before == after
