"""Embeddings encoded once, in batches of similar length, are the model's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from evaluation.encoder import Encoder
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError
from tests.evaluation.conftest import MakeModel

TEXTS = ["Река замерзает.", "Когда открыли первый музей в этом городе?", "  Рецепт борща ", "Да", "Река замерзает."]
LONG = "Длинный рассказ о том, как смотритель маяка чинил механизм. " * 40


@pytest.mark.parametrize(("role", "prompt"), [(QUERY, "query"), (DOCUMENT, "document")])
def test_sentences_are_what_sentence_transformers_gives(
    embedder: Encoder, model_folder: Path, role: str, prompt: str
) -> None:
    theirs = SentenceTransformer(str(model_folder), device="cpu").encode([*TEXTS, LONG], prompt_name=prompt)
    np.testing.assert_allclose(embedder.sentences([*TEXTS, LONG], role), theirs, atol=1e-6)


def test_prompts_come_from_the_model_folder(embedder: Encoder) -> None:
    assert [embedder.prompt(role) for role in (QUERY, DOCUMENT)] == ["query: ", "passage: "]


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


def test_bf16_changes_embeddings_a_little_and_gives_float32(model_folder: Path, embedder: Encoder) -> None:
    ours = Encoder(model_folder, precision="bf16").sentences(TEXTS)
    difference = np.abs(ours - embedder.sentences(TEXTS)).max()
    assert ours.dtype == np.float32 and 0 < difference < 0.05


def test_nan_in_the_weights_is_one_line(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(seed=3, folder=tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "LayerNorm.weight" in name)
    tensors[name].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity.*broken"):
        Encoder(folder).sentences(TEXTS)


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="can't be loaded"):
        Encoder(tmp_path)
