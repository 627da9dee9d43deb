"""Embeddings encoded once, in batches of similar length, are the model's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

from evaluation.encoder import Encoder
from pipeline.core.errors import UserError
from tests.support.zoo import animal

TEXTS = ["Река замерзает.", "Когда открыли первый музей в этом городе?", "  Рецепт борща ", "Да", "Река замерзает."]
LONG = "Длинный рассказ о том, как смотритель маяка чинил механизм. " * 40


def test_variants_are_the_pooled_last_hidden_state_text_by_text(embedder: Encoder, model_folder: Path) -> None:
    tokenizer, encoder = AutoTokenizer.from_pretrained(model_folder), AutoModel.from_pretrained(model_folder).eval()
    variants = embedder.variants([*TEXTS, LONG], 16)
    for position, text in enumerate([*TEXTS, LONG]):
        with torch.no_grad():
            output = encoder(**tokenizer(text, truncation=True, max_length=16, return_tensors="pt"))
        np.testing.assert_allclose(variants["cls"][position], output.last_hidden_state[0, 0], atol=1e-5)
        np.testing.assert_allclose(variants["mean"][position], output.last_hidden_state[0].mean(0), atol=1e-5)
        np.testing.assert_allclose(variants["pooler"][position], output.pooler_output[0], atol=1e-5)


def test_a_pooler_that_the_checkpoint_lacks_is_not_a_variant(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tensors = {name: value for name, value in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert set(Encoder(folder).variants(TEXTS)) == {"cls", "mean"}


def test_the_pooler_of_a_classifier_on_deberta_is_not_a_variant(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "pooler_hidden_size": 32}
    config = DebertaV2Config(vocab_size=1500, hidden_size=32, pad_token_id=1, **sizes)
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    assert set(Encoder(folder).variants(TEXTS)) == {"cls", "mean"}


def test_a_static_model_has_no_variants() -> None:
    with pytest.raises(UserError, match="StaticEmbedding has no layers"):
        Encoder(animal("static"), device="cpu").variants(TEXTS)


def test_word_vectors_are_means_of_sub_tokens_and_zeros_after_the_cut(embedder: Encoder, model_folder: Path) -> None:
    texts = [["Смотритель", "чинил", "механизм", "."], ["маяк"] * 300]
    tokenizer, encoder = AutoTokenizer.from_pretrained(model_folder), AutoModel.from_pretrained(model_folder).eval()
    for words, ours in zip(texts, embedder.words(texts), strict=True):
        batch = tokenizer(words, is_split_into_words=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**batch).last_hidden_state[0]
        for index, vector in enumerate(ours):
            tokens = [t for t, word in enumerate(batch.word_ids()) if word == index]
            expected = hidden[tokens].mean(0) if tokens else torch.zeros(hidden.shape[1])
            np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert not embedder.words(texts)[1][-1].any()


def test_a_model_without_a_table_of_positions_has_word_vectors() -> None:
    (words,) = Encoder(animal("T5"), device="cpu").words([["река", *["маяк"] * 300]])
    assert words[:10].any(axis=1).all() and not words[-1].any()  # its tokenizer cuts at 64 tokens


def test_bf16_changes_embeddings_a_little_and_returns_float32(model_folder: Path, embedder: Encoder) -> None:
    ours = Encoder(model_folder, precision="bf16").sentences(TEXTS)
    difference = np.abs(ours - embedder.sentences(TEXTS)).max()
    assert ours.dtype == np.float32 and 0 < difference < 0.05
