"""Merging three models of USER-bge-m3's size against LM-Cocktail, sentence-transformers and a plain copy.

The weights are random: only reading, arithmetic and writing are measured. Every run merges into a new folder and ends
with fsync; times exclude imports. A search candidate is compared with what it replaces: writing the interpolated
model, loading it again and scoring that.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import Side, alternate, row, run_main, timed, write
from benchmarks.peers import peer_environment

NAMES = ("init", "symmetric", "asymmetric")
WEIGHTS = (0.2, 0.45, 0.35)
TOLERANCE = 1e-6
GIGABYTE = 1e9


def main() -> None:
    """Create the models, measure, write `runs/bench/merging.json`, remove the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/merging"), help="scratch space: 10 GB")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        make_models(options.folder)
        write("merging", [*merge_rows(options.folder, options.rounds), *search_rows(options.folder, options.rounds)])
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def merge_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Time and memory of a whole merge, and the difference of the results."""
    peers = {
        "lm_cocktail": ("LM_Cocktail.mix_models", _side("merge_lm_cocktail", folder)),
        "copy": ("copying the three inputs", _side("copy_inputs", folder)),
        "sentence_transformers": (
            "SentenceTransformer.merge",
            _side("merge_sentence_transformers", folder, peer_environment("mergekit")),
        ),
    }
    ours, *others = alternate(_side("merge_streamed", folder), *(side for _, side in peers.values()), rounds=rounds)
    theirs = dict(zip(peers, others, strict=True))
    what = "merge of three models with 359 M parameters in float32, until it is on disk"
    rows = [
        row(f"time_vs_{key}", what, "s", ours.seconds, peers[key][0], their.seconds, "lower")
        for key, their in theirs.items()
    ]
    what = "peak resident memory of the process that merges"
    memory = ours.peak_bytes / GIGABYTE, theirs["lm_cocktail"].peak_bytes / GIGABYTE
    rows.append(row("memory_vs_lm_cocktail", what, "GB", memory[0], peers["lm_cocktail"][0], memory[1], "lower"))
    what, apart = "largest difference of a weight from LM-Cocktail's", largest_difference(folder)
    return [*rows, row("difference_vs_lm_cocktail", what, "absolute", apart, "tolerance", TOLERANCE, "lower")]


def _side(name: str, folder: Path, environment: dict[str, str] | None = None) -> Side:
    return Side(f"benchmarks.merging:{name}", {"folder": str(folder)}, environment=environment or {})


def search_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """One candidate of a search."""
    ours, theirs = alternate(_side("score_in_memory", folder), _side("score_reloaded", folder), rounds=rounds)
    what = f"one search candidate: interpolate, embed {len(texts())} short texts and score them"
    peer = "interpolate, save, reload, embed"
    return [row("search_candidate_vs_reload", what, "s", ours.seconds, peer, theirs.seconds, "lower")]


def make_models(folder: Path) -> None:
    """Three sentence-transformers folders: a random model, and two with noise added."""
    import torch
    from safetensors.torch import load_file, save_file

    from benchmarks.gpu_sides import SHAPES
    from configs.schema.init import BaseConfig
    from training.bases.synthetic import write_base

    write_base(folder / NAMES[0], SHAPES["gpu"].shape, BaseConfig(max_length=8192))
    tensors = load_file(folder / NAMES[0] / "model.safetensors")
    for name in NAMES[1:]:
        shutil.copytree(folder / NAMES[0], folder / name)
        noisy = {key: tensor + 1e-3 * torch.randn_like(tensor) for key, tensor in tensors.items()}
        save_file(noisy, folder / name / "model.safetensors", metadata={"format": "pt"})


def texts() -> list[str]:
    """The texts that a candidate embeds."""
    return [f"w{first} w{second}" for first in range(8) for second in range(8, 12)]


def merge_streamed(folder: str) -> float:
    """Seconds of our merge."""
    from merging.compatibility import write_model

    models, weights = inputs(folder), dict(zip(NAMES, WEIGHTS, strict=True))
    return timed(lambda target: write_model(models, weights, target, "float32"), Path(folder) / "merged")


def merge_lm_cocktail(folder: str) -> float:
    """Seconds of LM-Cocktail, which the model card names."""
    from LM_Cocktail import mix_models

    paths = [str(path) for path in inputs(folder).values()]
    return timed(lambda target: mix_models(paths, "encoder", list(WEIGHTS), str(target)), Path(folder) / "mixed")


def merge_sentence_transformers(folder: str) -> float:
    """Seconds of sentence-transformers' merge over mergekit."""
    from sentence_transformers import SentenceTransformer

    paths = [str(path) for path in inputs(folder).values()]

    def merge(target: Path) -> None:
        merged = SentenceTransformer.merge(paths, "linear", parameters={"weight": list(WEIGHTS)}, device="cpu")
        merged.save(str(target))

    return timed(merge, Path(folder) / "linear")


def copy_inputs(folder: str) -> float:
    """Seconds of copying the files that a merge has to read."""

    def copy(target: Path) -> None:
        for name, source in inputs(folder).items():
            shutil.copytree(source, target / name)

    return timed(copy, Path(folder) / "copies")


def score_in_memory(folder: str) -> float:
    """Seconds of one candidate, as the search scores it."""
    from data.artefact import PairSet
    from merging.blend import Blend
    from training.dev_scores import DevEvaluator

    blend = Blend(inputs(folder))
    anchors, positives = texts()[::2], texts()[1::2]
    pairs = PairSet("pairs", "symmetric", anchors, positives, [[]] * len(anchors), [1.0] * len(anchors))
    scores = DevEvaluator([pairs], blend.model, max_length=64)
    started = time.perf_counter()
    blend.set(dict(zip(NAMES, WEIGHTS, strict=True)))
    scores(blend.model)
    return time.perf_counter() - started


def score_reloaded(folder: str) -> float:
    """Seconds of one candidate written to disk and loaded again (from the page cache)."""
    from sentence_transformers import SentenceTransformer

    from merging.compatibility import write_model

    target, weights = Path(folder) / "candidate", dict(zip(NAMES, WEIGHTS, strict=True))
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    write_model(inputs(folder), weights, target, "float32")
    SentenceTransformer(str(target), device="cpu").encode(texts(), batch_size=64)
    return time.perf_counter() - started


def inputs(folder: str) -> dict[str, Path]:
    """The model folders by name."""
    return {name: Path(folder) / name for name in NAMES}


def largest_difference(folder: Path) -> float:
    """The largest difference between the streamed merge and LM-Cocktail's, both as written to disk."""
    from safetensors import safe_open

    with (
        safe_open(folder / "merged/model.safetensors", "pt") as ours,
        safe_open(folder / "mixed/model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        return max((ours.get_tensor(key) - theirs.get_tensor(key)).abs().max().item() for key in list(ours.keys()))


if __name__ == "__main__":
    run_main(main)
