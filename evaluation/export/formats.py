"""The formats a model can be exported to: the path, packages and loading line of each."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.errors import INSTALL, UserError


@dataclass(frozen=True)
class Format:
    """One format; `least` bounds the mean cosine with torch's embeddings, or a static model's correlation of pairs."""

    place: str
    packages: tuple[str, ...]
    line: str  # Python, with a {folder} field
    least: float


GRAPH, OPENVINO = ("onnx", "onnxscript"), "openvino/openvino_model_int8.xml"
ONNX, SESSION = (*GRAPH, "onnxruntime"), 'onnxruntime.InferenceSession("{folder}/onnx/%s")'
FORMATS = {
    "onnx": Format("onnx/model.onnx", ONNX, SESSION % "model.onnx", 0.9999),
    "onnx-int8": Format("onnx/model_int8.onnx", ONNX, SESSION % "model_int8.onnx", 0.95),
    "openvino-int8": Format(
        OPENVINO, (*GRAPH, "openvino", "nncf"), f'openvino.compile_model("{{folder}}/{OPENVINO}", "CPU")', 0.95
    ),
    "static": Format("static", ("model2vec", "skeletoken"), 'SentenceTransformer("{folder}/static")', 0.5),
}


def require_packages(formats: Sequence[str]) -> None:
    """Raise UserError if a format's packages are not installed."""
    wanted = dict.fromkeys(package for name in formats for package in FORMATS[name].packages)
    if missing := [name for name in wanted if importlib.util.find_spec(name) is None]:
        remedy = f"{INSTALL} {' '.join(missing)}, or leave out the formats that need them"
        raise UserError(f"exporting needs {', '.join(missing)}", where="config key export.formats", remedy=remedy)
