"""The encoder as ONNX, by torch's own exporter, checked against torch with onnxruntime."""

import importlib.util
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from pipeline.core.errors import UserError
from pipeline.core.models import load_folder

PLACE = "onnx/model.onnx"  # where sentence-transformers and transformers.js look
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "last_hidden_state"
TOLERANCE = 1e-3  # of hidden states, which are of the order of 1
TEXTS = [
    ["Река замерзает в ноябре."],
    ["Рецепт борща", "Свёклу для борща тушат отдельно, с уксусом и томатом.", "Лёд"],
]


def export_onnx(folder: Path) -> float:
    """Write `onnx/model.onnx` into a model folder; returns the largest difference of its hidden states from torch's.

    Batch and length are free. Raises UserError where onnx, onnxscript or onnxruntime is missing, or where the two
    differ by more than 1e-3.
    """
    _require_packages()
    model = AutoModel.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = load_folder(folder, "cpu").tokenizer
    target = folder / PLACE
    target.parent.mkdir(exist_ok=True)
    batch = tokenizer(TEXTS[1][:2], padding=True, return_tensors="pt")
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=tokenizer.model_max_length)}
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            HiddenStates(model).eval(),
            tuple(batch[name] for name in INPUTS),
            str(target),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, free),
            dynamo=True,
            verbose=False,
        )
    difference = max(_difference(model, tokenizer, target, texts) for texts in TEXTS)
    if not difference <= TOLERANCE:
        what = f"the ONNX export differs from torch by {difference:.2g}"
        raise UserError(what, where=str(target), remedy="publish without it: evaluation.publish.onnx=false")
    return difference


class HiddenStates(torch.nn.Module):
    """The model with one output, the last hidden states [texts, tokens, hidden]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _difference(model: Any, tokenizer: Any, path: Path, texts: list[str]) -> float:
    import onnxruntime

    batch = tokenizer(texts, padding=True, return_tensors="pt")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (ours,) = session.run([OUTPUT], {name: batch[name].numpy() for name in INPUTS})
    with torch.inference_mode():
        theirs = model(**{name: batch[name] for name in INPUTS}).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return float(((torch.from_numpy(ours) - theirs) * mask).abs().max())


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"exporting to ONNX needs {', '.join(missing)}",
            where="config key evaluation.publish.onnx",
            remedy="pip install onnx onnxscript onnxruntime, or set it to false",
        )
