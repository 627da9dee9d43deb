"""Loading models: a folder embeds as sentence-transformers does, or is refused in one line; one place loads them."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from evaluation.encoder import Encoder
from evaluation.suites.heads import sparse_vectors, token_vectors
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads
from pipeline.core.model_folder import read_tokenizer, resolve_model
from pipeline.core.models import load_folder
from tests.support.hub import COMMIT, in_place_of_the_hub, local_hub
from tests.support.small_bases import tiny_base
from tests.support.zoo import SIZES, TEXTS, ZOO, animal, edit, expected

REFUSED = {  # of a scored model: what the line names
    "LSTM": "a module LSTM, and the model can't embed a text: 'sentence_lengths'",
    "CNN": "a module CNN, and a text's embedding depends on the length of the others in its batch",
    "BERT with left padding": "padding_side in tokenizer_config.json is left, and a text's embedding depends",
    "a length for queries": "query_length in sentence_bert_config.json",
    "settings of each call": "processing_kwargs in sentence_bert_config.json",
    "bag of words": "modules.json starts with BoW",
}


@pytest.mark.parametrize("name", [name for name in ZOO if name not in REFUSED])
def test_a_scored_model_returns_what_the_library_returns(name: str) -> None:
    encoder = Encoder(animal(name), device="cpu", token_budget=32)  # other batches than the library's
    queries, documents, _ = expected(name)
    for role, wanted in ((QUERY, queries), (DOCUMENT, documents)):
        largest = max(1.0, float(np.abs(wanted).max()))  # of embeddings that are not of length 1
        np.testing.assert_allclose(encoder.sentences(TEXTS, role), wanted, atol=1e-6 * largest)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_only_the_library_can_run_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        load_folder(animal(name), "cpu")
    assert str(animal(name)) in caught.value.line and "\n" not in caught.value.line


@pytest.mark.parametrize("name", ["no modules", "a model of another kind"])
def test_the_library_s_own_pooling_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    load_folder(animal(name), "cpu")
    assert [record.message for record in caplog.records if "pools its tokens by mean" in record.message]


def test_a_static_model_has_no_token_embeddings_and_says_so() -> None:
    encoder, heads = Encoder(animal("static"), device="cpu"), Heads(torch.nn.Linear(32, 1), torch.nn.Linear(32, 8), "")
    for ask in (
        lambda: encoder.variants(TEXTS),
        lambda: encoder.words([["река"]]),
        lambda: token_vectors(encoder, heads, TEXTS),
        lambda: sparse_vectors(encoder, heads, TEXTS),
    ):
        with pytest.raises(UserError, match=r"StaticEmbedding has no layers.*protocol: model"):
            ask()


@pytest.mark.parametrize("listed", ["{", "[]", '[{"type": "a.Transformer", "path": "../../etc"}]', '["Transformer"]'])
def test_an_invalid_list_of_modules_is_refused(listed: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base(), tmp_path / "model"))
    (folder / "modules.json").write_text(listed)
    with pytest.raises(UserError, match=str(folder)):
        load_folder(folder, "cpu")


def test_a_model_that_states_no_length_is_cut_where_its_positions_end(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(animal("no modules"), tmp_path / "model"))
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    model = load_folder(folder, "cpu")
    assert model.max_seq_length == 64
    assert np.isfinite(model.encode(["река " * 200])).all()


def test_a_tokenizer_file_is_read_without_its_truncation_and_padding() -> None:
    name = "truncation and padding in tokenizer.json"
    tokenizer = read_tokenizer(animal(name) / "tokenizer.json")
    assert tokenizer.truncation is None and tokenizer.padding is None
    assert load_folder(animal(name), "cpu").tokenizer.padding_side == "right"


@pytest.mark.parametrize("whole", ["", "2_Dense/"])
def test_torch_s_files_come_from_the_hub_where_a_folder_has_no_others(
    whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of weights in one folder, only torch's in the other, as many models have them."""
    model = Path(shutil.copytree(animal("Dense"), tmp_path / "models/someone/model"))
    for place in ("", "2_Dense/"):
        torch.save(load_file(model / f"{place}model.safetensors"), model / f"{place}pytorch_model.bin")
        if place != whole:
            (model / f"{place}model.safetensors").unlink()
    with local_hub(tmp_path / "models") as hub:
        in_place_of_the_hub(hub, tmp_path / "cache", monkeypatch)
        folder, commit = resolve_model("someone/model", None, "a key")
    assert not (folder / f"{whole}pytorch_model.bin").exists() and folder.name == commit == COMMIT
    np.testing.assert_allclose(Encoder(folder, device="cpu").sentences(TEXTS), expected("Dense")[0], atol=1e-6)


LOADERS = {"from_file", "from_str", "from_buffer", "from_pretrained"}  # of tokenizers
LIBRARY_MODELS = {"SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "CrossEncoder", "Transformer"}


def opens_a_tokenizer(call: ast.Call) -> bool:
    """Whether a call reads a tokenizer: a class of tokenizers, or a model of sentence-transformers, from a place."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if method in LOADERS and ("Tokenizer" in owner or "Processor" in owner):
        return True
    return name.rpartition(".")[2] in LIBRARY_MODELS and bool(call.args)


def test_two_places_open_tokenizers_one_without_and_one_with_their_models(repository: Path) -> None:
    found = set()
    for package in ("configs", "data", "evaluation", "merging", "pipeline", "training"):
        for path in (repository / package).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
            if any(map(opens_a_tokenizer, calls)):
                found.add(path.relative_to(repository).as_posix())
    assert found == {"pipeline/core/model_folder.py", "pipeline/core/models.py"}


@pytest.mark.parametrize(
    "line", ["Tokenizer.from_file(p)", "AutoTokenizer.from_pretrained(p)", "st.SentenceTransformer(p)"]
)
def test_the_search_knows_what_opens_a_tokenizer(line: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
    assert opens_a_tokenizer(call)


def test_parts_of_an_earlier_save_don_t_stand_in_for_a_tensor_that_the_model_lacks(tmp_path: Path) -> None:
    """transformers reads only the whole file, and would make up the tensor at random."""
    shutil.copytree(tiny_base(), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    tensors.pop("encoder.layer.0.output.dense.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack the tensor encoder\.layer\.0\.output\.dense\.weight"):
        load_folder(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("family", "stored", "named"),
    [("mpnet", "encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
     ("nomic_bert", "encoder.layers.0.attn.Wqkv.weight", "layers.0.self_attn.k_proj.weight and 2 more")],
)  # fmt: skip
def test_a_missing_tensor_is_named_also_in_a_family_whose_file_has_other_names(
    tmp_path: Path, family: str, stored: str, named: str
) -> None:
    shutil.copytree(tiny_base(), tmp_path, dirs_exist_ok=True)
    AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).save_pretrained(tmp_path)
    assert load_folder(tmp_path, device="cpu")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(stored)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"the weights lack the tensor {re.escape(named)} "):
        load_folder(tmp_path, device="cpu")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    """Its model, which only a name points to, would be read from the Hub, at any revision."""
    shutil.copytree(tiny_base(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json: an adapter's weights .*; merge it"):
        load_folder(tmp_path, device="cpu")


def test_a_gpu_that_is_not_there_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build is asked for its capability first; a CPU build fails when the model is moved there."""
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    with pytest.raises(UserError, match="the model can't be loaded: "):
        load_folder(tiny_base(), "cuda:9")
