"""Packed texts are embedded, and learned from, as padded ones are."""

import copy
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor

from pipeline.core import packed
from pipeline.core.device import PACKED
from pipeline.core.models import load_folder
from pipeline.core.packed import first_position_of, is_packed, pack, use_packed, why_not_packed
from tests.support.planned_sets import difference, gradients
from tests.support.zoo import animal

POOLINGS = "cls", "mean", "lasttoken"
MOST = 64  # tokens of a text, which is all that the tiny base has positions for
LENGTHS = {
    "one text": [9],
    "many texts": [3, 17, 17, 5],
    "a text of one token": [1, 12],
    "the longest": [MOST, 2, MOST],
}


ANIMALS = {
    "xlm-roberta": "the tiny base",
    "bert": "BERT",
    "modernbert": "ModernBERT",
    "eurobert": "EuroBERT",
    "qwen3": "Qwen3",
}


def padded_model(family: str, pooling: str) -> SentenceTransformer:
    encoder: Any = load_folder(animal(ANIMALS[family]), "cpu", attn_implementation="eager")[0]
    assert isinstance(encoder, Transformer) and encoder.model.config.model_type == family
    model = SentenceTransformer(modules=[encoder, Pooling(32, pooling), Normalize()], device="cpu").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def texts_of(lengths: list[int]) -> list[list[int]]:
    random = torch.Generator().manual_seed(3)
    return [torch.randint(4, 400, (length,), generator=random).tolist() for length in lengths]


def padded(texts: list[list[int]]) -> dict[str, Tensor]:
    rows = [torch.tensor(text) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    masks = [torch.ones(len(text), dtype=torch.long) for text in texts]
    return {"input_ids": ids, "attention_mask": torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)}


def embeddings_and_gradient(model: SentenceTransformer, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
    found = model(features)["sentence_embedding"]
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    (found * weights).sum().backward()
    return found.detach(), gradients(model)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ANIMALS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_texts_have_the_embeddings_and_the_gradient_of_padded_ones(
    lengths: list[int], family: str, pooling: str
) -> None:
    model, texts = padded_model(family, pooling), texts_of(lengths)
    other = copy.deepcopy(model)
    use_packed(other)
    expected, gradient = embeddings_and_gradient(model, padded(texts))
    found, packed_gradient = embeddings_and_gradient(other, pack(texts, first_position_of(other)))
    assert found.shape == (len(lengths), 32)
    assert (found - expected).abs().max() <= 1e-5
    assert gradient.norm() > 0
    assert difference(gradient, packed_gradient) <= 1e-5


@pytest.mark.parametrize(("family", "first"), [("xlm-roberta", 2), ("bert", 0)])
def test_each_text_begins_at_the_family_s_first_position(family: str, first: int) -> None:
    model, seen = padded_model(family, "cls"), []
    table = model[0].model.embeddings.position_embeddings
    table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0].tolist()))
    model(padded(texts_of([4])))
    use_packed(model)
    features = pack(texts_of([1, 4, 3]), first_position_of(model))
    model(features)
    one = list(range(first, first + 4))
    assert seen[0] == one and seen[1] == [*one[:1], *one, *one[:3]]
    assert features["max_length_q"] == features["max_length_k"] == 4  # which the GPU's kernel reads


def test_a_text_does_not_attend_to_its_neighbours() -> None:
    model = padded_model("xlm-roberta", "mean").eval()
    use_packed(model)
    first, second, third = texts_of([6, 9, 4])
    with torch.no_grad():
        alone = model(pack([second], 2))["sentence_embedding"][0]
        between = model(pack([first, second, third], 2))["sentence_embedding"][1]
        together = model(pack([third, second], 2))["sentence_embedding"][1]
    assert (alone - between).abs().max() <= 1e-6
    assert (alone - together).abs().max() <= 1e-6


@pytest.mark.parametrize("lengths", [[3, 17, 5], [17]])
@pytest.mark.parametrize("family", ["xlm-roberta", "modernbert"])
def test_a_model_with_packed_attention_takes_padded_texts_as_before(family: str, lengths: list[int]) -> None:
    model, features = padded_model(family, "mean").eval(), padded(texts_of(lengths))
    with torch.no_grad():
        expected = model(dict(features))["sentence_embedding"]
        use_packed(model)
        assert is_packed(model) and "flash" not in PACKED
        assert (model(dict(features))["sentence_embedding"] - expected).abs().max() <= 1e-6


def test_what_packed_attention_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = padded_model("xlm-roberta", "cls")
    if not torch.cuda.is_available():
        assert why_not_packed(model, half=True, dropout=0.0) == "a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert why_not_packed(model, half=True, dropout=0.0) == "attention sdpa"  # the model's own is eager
    model[0].model.set_attn_implementation("sdpa")
    assert why_not_packed(model, half=True, dropout=0.0) is None and not is_packed(model)
    use_packed(model)
    assert why_not_packed(model, half=True, dropout=0.0) is None
    with monkeypatch.context() as patched:
        patched.setattr(model[0].model.config, "num_attention_heads", 16)
        assert "multiple of 8" in str(why_not_packed(model, half=True, dropout=0.0))
    assert why_not_packed(model, half=False, dropout=0.0) == "precision bf16 or fp16"
    assert why_not_packed(model, half=True, dropout=0.1) == "dropout=0"
    of = {None: (8, 0), torch.device("cuda:1"): (7, 5)}  # the process's own GPU is newer than the model's
    monkeypatch.setattr(torch.cuda, "get_device_capability", of.get)
    assert why_not_packed(model, half=True, dropout=0.0) is None
    monkeypatch.setattr(type(model), "device", torch.device("cuda:1"))
    assert why_not_packed(model, half=True, dropout=0.0) == "a GPU of compute capability 8.0 or more"


def test_the_kernel_is_flash_attention_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not cuDNN's, which newer releases of torch would prefer; what else computes attention is left alone."""
    enabled, allowed, windows, groups = torch.backends.cuda, [], [], []

    def kernel(query: Tensor, *_: Any, **options: Any) -> Tensor:
        allowed.append((enabled.flash_sdp_enabled(), enabled.cudnn_sdp_enabled()))
        windows.append(options.get("window_size"))
        groups.append(options.get("enable_gqa"))
        return query

    monkeypatch.setattr(packed, "varlen_attn", kernel)
    tokens, shared = (torch.empty(1, heads, 12, 8, device="meta") for heads in (4, 2))
    decoder = torch.nn.Identity()
    decoder.is_causal = True  # type: ignore[assignment]
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    before = enabled.flash_sdp_enabled(), enabled.cudnn_sdp_enabled()
    for window in (None, 65):
        options = {"cu_seq_lens_q": ends, "max_length_q": 9, "sliding_window": window}
        packed._attention(torch.nn.Identity(), tokens, tokens, tokens, None, **options)
        packed._attention(decoder, tokens, shared, shared, None, **options)
    assert allowed == [(True, False)] * 4
    # Inclusive, as in transformers' own call of flash attention. Earlier releases of torch lack the second option.
    assert windows == [None, (-1, 0), (64, 64), (64, 0)] and groups == [None, True] * 2
    assert (enabled.flash_sdp_enabled(), enabled.cudnn_sdp_enabled()) == before


def test_the_kernel_gets_16_bit_where_rotary_positions_widened_query_and_key() -> None:
    wide, value = (torch.empty(1, 4, 12, 8, device="meta", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    options = {"cu_seq_lens_q": torch.empty(3, dtype=torch.int32, device="meta"), "max_length_q": 9}
    found, _ = packed._attention(torch.nn.Identity(), wide, wide, value, None, **options)
    assert found.dtype == torch.bfloat16  # the query's
