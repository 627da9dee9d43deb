"""The stage `export`: the final model as ONNX, in 8 bits and as static embeddings, each checked against torch.

Every form has the path that it gets in the published folder. It is checked on the bundled samples, real texts that
no earlier stage trains on; speeds are from one pass over them on the CPU, with as many threads as torch uses.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from configs.schema.config import Config
from evaluation.export import graphs
from evaluation.export.formats import FORMATS, require_packages
from evaluation.export.graphs import INPUTS, load_format
from evaluation.models import final_stage
from evaluation.suites.sample_files import read_samples
from evaluation.suites.vectors import calibration_texts
from pipeline.core.artefact import StageFolder, files_under
from pipeline.core.console import log, quiet
from pipeline.core.embedding import DOCUMENT, QUERY, Embedder
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder

LENGTH = 512  # tokens at which texts are truncated here


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Make and check every format in `export.formats`; returns the size, speed and agreement of each.

    Raises UserError if a package is missing, the model has no layers, or a form is too far from torch.
    """
    require_packages(config.export.formats)
    folder = config.model_folder(final_stage(config))
    with quiet():
        model = load_folder(folder, "cpu").eval()
    if type(model[0]).__name__ != "Transformer":
        what = f"{type(model[0]).__name__} has no layers to export"
        raise UserError(what, where=str(folder), remedy="use it as it is: it is as small as an export")
    original = Embedder(model, max_length=LENGTH)
    reference, rate = timed(original)
    size = sum(weights.nbytes for weights in model.parameters())
    metrics: dict[str, Any] = {"texts": len(reference), "torch texts per second": rate, "torch bytes": size}
    metrics["torch bytes a vector"] = 4 * reference.shape[1]
    graph = None  # only from this attempt: an earlier one may have left a partial file
    for name in config.export.formats:
        log.info("export: %s", name)
        place = stage.path / FORMATS[name].place
        with silent():
            with stage.scratch() as scratch:
                write_format(name, folder, scratch, original, stage.inputs.get("data"), graph)
            graph = place if name == "onnx" else graph
            found, rate = timed(load_format(name, place, model, max_length=LENGTH))
        measured = {**agreement(found, reference), "texts per second": rate, "bytes": weight(place)}
        require_agreement(name, measured, place)
        metrics |= {f"{name} {what}": value for what, value in measured.items()}
    return metrics


@contextmanager
def silent() -> Iterator[None]:
    """Silence the exporters, whose loggers, progress bars and warnings report every node and text."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_format(
    name: str, folder: Path, target: Path, original: Embedder, data: Path | None, graph: Path | None = None
) -> None:
    """Write one form of the model in `folder` to its path under `target`; `data` calibrates OpenVINO's ranges.

    8-bit graphs are made from the plain one, `graph`, which is written temporarily if there is none yet.
    """
    place = target / FORMATS[name].place
    place.parent.mkdir(parents=True, exist_ok=True)
    if name == "static":
        graphs.write_static(folder, place)
        return
    if name == "onnx":
        graphs.write_onnx(folder, place)
        return
    with TemporaryDirectory(dir=target) as scratch:
        if graph is None:
            graph = Path(scratch, "model.onnx")
            graphs.write_onnx(folder, graph)
        if name == "onnx-int8":
            graphs.write_onnx_int8(graph, place)
        else:
            assert data is not None
            graphs.write_openvino_int8(graph, place, calibration(original, data))


def timed(embedder: Embedder) -> tuple[np.ndarray, float]:
    """Embeddings [texts, width] of the samples, sentence pairs interleaved, then documents; and texts per second."""
    pairs = [(row["sentence1"], row["sentence2"]) for row in read_samples("sts")]
    pairs += [(row["text_1"], row["text_2"]) for row in read_samples("paraphrase")]
    texts = [text for pair in pairs for text in pair] + [row["document"] for row in read_samples("long_documents")]
    ids = embedder.tokenise(texts, embedder.prompt(QUERY))
    embedder.encode(ids[:8])  # the first call allocates buffers
    started = time.perf_counter()
    return embedder.encode(ids), round(len(ids) / (time.perf_counter() - started), 1)


def agreement(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How close a form's embeddings are to torch's: cosines, if both share a space, and their pairs' correlation.

    The correlation is Pearson's, between the two models' cosines of the samples' pairs. If all of a model's cosines
    are between 0.7 and 1, it shows a loss that the cosines hardly show.
    """
    unit, wanted = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (found, reference))
    pairs = 2 * (len(read_samples("sts")) + len(read_samples("paraphrase")))
    cosines = [np.einsum("ij,ij->i", of[:pairs:2], of[1:pairs:2]) for of in (unit, wanted)]
    measured = {
        "bytes a vector": 4 * found.shape[1],
        "correlation of pairs' cosines": float(np.corrcoef(*cosines)[0, 1]),
    }
    if unit.shape == wanted.shape:
        each = np.einsum("ij,ij->i", unit, wanted)
        measured |= {"cosine mean": float(each.mean()), "cosine min": float(each.min())}
    return measured


def require_agreement(name: str, found: dict[str, float], place: Path) -> None:
    """Raise UserError if the measure that the form is judged by is below its bound."""
    measure = "correlation of pairs' cosines" if name == "static" else "cosine mean"
    if not found[measure] >= FORMATS[name].least:
        what = f"the export {name} is too far from torch: {measure} {found[measure]:.4f}, below {FORMATS[name].least}"
        raise UserError(what, where=str(place), remedy="leave it out of export.formats")


def calibration(embedder: Embedder, data: Path) -> list[dict[str, np.ndarray]]:
    """Texts of the training mixture as graph inputs of one text each."""
    rows = embedder.tokenise(calibration_texts(data, DOCUMENT), embedder.prompt(DOCUMENT))
    return [dict(zip(INPUTS, (np.array([row]), np.ones((1, len(row)), np.int64)), strict=True)) for row in rows]


def weight(place: Path) -> int:
    """Bytes of a form: a folder, or a file and any weights next to it."""
    files = files_under(place) if place.is_dir() else [*place.parent.glob(f"{place.stem}.*")]
    return sum(file.stat().st_size for file in files)
