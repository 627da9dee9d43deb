"""A base with bge-m3's heads through the whole chain: the published folder yields all three kinds of vectors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from evaluation.encoder import Encoder
from evaluation.suites.heads import sparse_vectors, token_vectors
from pipeline.core.heads import Heads, read_heads, write_heads
from pipeline.core.model_folder import HEADS
from tests.support.flag_embedding import encoded
from tests.support.runs import make
from tests.support.small_bases import tiny_model

pytestmark = pytest.mark.slow

TEXTS = ["Когда замерзает река?", "Лёд на реке встаёт в ноябре."]
WIDTH = 32


@pytest.fixture(scope="module")
def published(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to upload, of a run from a random XLM-R base with heads in a mirror."""
    folder = tmp_path_factory.mktemp("heads")
    mirror, runs = folder / "mirror", folder / "runs"
    mirror.mkdir()
    for owner in (repository / "data" / "samples").iterdir():
        (mirror / owner.name).symlink_to(owner)
    base = mirror / "organisation" / "base"
    tiny_model(base, 1, vocabulary=1000, hidden=WIDTH)
    torch.manual_seed(3)
    for name, size in zip(HEADS, (1, WIDTH), strict=True):
        head = torch.nn.Linear(WIDTH, size)
        torch.nn.init.constant_(head.bias, 5.0)  # a weight of 0 or less would leave a word out of the sparse vector
        torch.save(head.state_dict(), base / name)
    settings = ["profile=tiny", "run=heads", "launch.config=none"]
    settings += [f"runs={runs}", f"mirror={mirror}", "base.kind=hub", "base.hub=organisation/base"]
    settings += ["evaluation.suites=[held_out]", "merging=uniform"]
    make("stages=[data,init,symmetric,asymmetric,merge,evaluate,publish]", *settings)
    return runs / "heads" / "publish" / "model"


def test_heads_and_the_map_of_ids_are_included(published: Path) -> None:
    base = published.parents[3] / "mirror" / "organisation" / "base"
    assert all((published / name).read_bytes() == (base / name).read_bytes() for name in HEADS)
    assert (published / "vocabulary" / "id_map.parquet").is_file()
    assert (published / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with XLM-R's kind of tokenizer, mean pooling and heads, as the demo's final model."""
    folder = tiny_model(
        tmp_path_factory.mktemp("bert"), 1, vocabulary=1000, hidden=WIDTH, pooling="mean", max_length=64
    )
    size = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(4)
    tokens = json.loads((folder / "config.json").read_text())["vocab_size"]
    BertModel(BertConfig(vocab_size=tokens, pad_token_id=1, **size)).save_pretrained(folder)
    heads = Heads(torch.nn.Linear(WIDTH, 1), torch.nn.Linear(WIDTH, WIDTH))  # FlagEmbedding takes no other width
    write_heads(folder, heads)
    return folder


@pytest.mark.parametrize(("name", "pooling"), [("published", "cls"), ("bert", "mean")])
def test_flag_embedding_returns_the_vectors_of_our_own_encoders(
    name: str, pooling: str, request: pytest.FixtureRequest, flag_embedding: dict[str, str]
) -> None:
    folder: Path = request.getfixturevalue(name)
    theirs = encoded(folder, TEXTS, flag_embedding, pooling)
    encoder, heads = Encoder(folder, device="cpu"), read_heads(folder)
    assert theirs["heads"]
    np.testing.assert_allclose(theirs["dense"], encoder.model.encode(TEXTS), atol=1e-5)
    sparse = sparse_vectors(encoder, heads, TEXTS).toarray()
    for ours, words in zip(sparse, theirs["sparse"], strict=True):
        assert words == {str(token): pytest.approx(ours[token], abs=1e-4) for token in np.flatnonzero(ours)}
    multi_vector = token_vectors(encoder, heads, TEXTS)
    for ours, vectors in zip(multi_vector, theirs["multi_vector"], strict=True):
        np.testing.assert_allclose(np.asarray(ours), vectors, atol=1e-5)


def test_sentence_transformers_multi_vector_class_takes_the_head_as_the_card_says(published: Path) -> None:
    card = (published / "README.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "MultiVectorEncoder" in code]
    code = f"import os; os.chdir({str(published)!r})\n{example}\nprint([v.tolist() for v in model.encode({TEXTS!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    encoder, heads = Encoder(published, device="cpu"), read_heads(published)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for ours, vectors in zip(token_vectors(encoder, heads, TEXTS), theirs, strict=True):
        np.testing.assert_allclose(np.asarray(ours), vectors, atol=1e-5)


def test_the_card_s_example_for_flag_embedding_runs(published: Path, flag_embedding: dict[str, str]) -> None:
    card = (published / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "BGEM3FlagModel" in block]
    code = example + "print(sorted(vectors), vectors['dense_vecs'].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | flag_embedding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"['colbert_vecs', 'dense_vecs', 'lexical_weights'] (1, {WIDTH})"
