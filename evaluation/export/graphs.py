"""Writes and loads each format; graphs include pooling and scaling, and return complete embeddings.

sentence-transformers' own exports use optimum, whose releases need an older transformers than the library itself.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from pipeline.core.embedding import Embedder, Features
from pipeline.core.errors import UserError, first_line
from pipeline.core.models import load_folder

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
ONE_FILE = 1.9e9  # bytes of weights that fit inside a graph's file, which is limited to 2 GiB
Graph = Callable[[dict[str, np.ndarray]], np.ndarray]  # inputs [texts, tokens] -> embeddings [texts, dimension]


class Embedding(torch.nn.Module):
    """The model as one graph, from token ids and mask [texts, tokens] to embeddings [texts, dimension]."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        first: Any = model[0]
        self.encoder, self.rest = first.model, torch.nn.ModuleList(list(model)[1:])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        features = {"token_embeddings": hidden, "attention_mask": attention_mask}
        for module in self.rest:
            features = module(features)
        return features[OUTPUT]


def write_onnx(folder: Path, target: Path) -> None:
    """Export the model in `folder` with torch's own exporter; the numbers of texts and tokens are dynamic."""
    model = load_folder(folder, "cpu", attn_implementation="eager")
    batch = model.tokenizer(["Река замерзает в ноябре.", "Рецепт борща"], padding=True, return_tensors="pt")
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=model.max_seq_length)}
    torch.onnx.export(
        Embedding(model).eval(),
        tuple(batch[name] for name in INPUTS),
        target,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_shapes=dict.fromkeys(INPUTS, dynamic),
        external_data=sum(weights.nbytes for weights in model.parameters()) > ONE_FILE,
        verbose=False,
    )


def write_onnx_int8(graph: Path, target: Path) -> None:
    """8-bit weights, 7 of whose bits are used as older processors would overflow; dynamically quantised activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def write_openvino_int8(graph: Path, target: Path, batches: Sequence[dict[str, np.ndarray]]) -> None:
    """8-bit weights and activations, whose ranges are calibrated on `batches` of texts."""
    import nncf
    import openvino

    model, count = openvino.convert_model(graph), len(batches)
    made = nncf.quantize(model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=count)
    openvino.save_model(made, target, compress_to_fp16=False)


def write_static(folder: Path, target: Path) -> None:
    """A table of one vector per token, whose mean is a text's embedding: no layers and no prompts.

    Raises UserError where model2vec can't run the model, such as T5's encoder without its decoder.
    """
    try:
        table = StaticEmbedding.from_distillation(str(folder), device="cpu")
    except ValueError as error:
        what, remedy = f"model2vec can't distil it: {first_line(error)}", "leave static out of export.formats"
        raise UserError(what, where=str(folder), remedy=remedy) from error
    SentenceTransformer(modules=[table], device="cpu").save(str(target), create_model_card=False)


class GraphEmbedder(Embedder):
    """The model's tokenizer and batches, with a graph instead of its modules."""

    def __init__(self, model: SentenceTransformer, graph: Graph, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.graph = graph

    def pooled(self, features: Features) -> torch.Tensor:
        return torch.from_numpy(self.graph({name: features[name].numpy() for name in INPUTS}))


def load_format(name: str, place: Path, model: SentenceTransformer, **settings: Any) -> Embedder:
    """The form at `place`, on the CPU; `model` is the one it was made from, `settings` are Embedder's."""
    if name == "static":
        return Embedder(load_folder(place, "cpu"), **settings)
    threads = torch.get_num_threads()
    if name.startswith("openvino"):
        import openvino

        compiled = openvino.compile_model(place, "CPU", {"INFERENCE_NUM_THREADS": threads})
        return GraphEmbedder(model, lambda inputs: compiled(inputs)[0], **settings)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    return GraphEmbedder(model, lambda inputs: session.run([OUTPUT], inputs)[0], **settings)
