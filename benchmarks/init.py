"""`make bench NAME=init`: shrinking against copying and transformers, counting by words against encoding every text.

The base is random in bge-m3's full shape (568 M parameters, float32) with the real XLM-R tokenizer, and is shrunk to
as many ids as TatonkaHF/bge-m3_en_ru has. Needs 8 GB of disk under `runs`, and real texts.
"""

import json
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measurement import Side, alternate, row, run_main, timed, write
from benchmarks.real_texts import real_texts
from pipeline.core.artefact import files_under, synchronise

RUNS = Path("runs")
KEPT = 46_166
SEED = 42


def main() -> None:
    """Measure both parts and write `runs/bench/init.json`."""
    RUNS.mkdir(exist_ok=True)
    texts = real_texts()  # first, as they may be missing
    with TemporaryDirectory(prefix="bench-init-", dir=RUNS) as name:
        write("init", [*shrinking(Path(name)), *counting(texts, Path(name))])


def shrinking(scratch: Path) -> list[dict[str, Any]]:
    """Shrinking a large base: seconds and peak memory; every target is new and synced to disk."""
    base = scratch / "base"
    make_large_base(base)
    np.save(scratch / "kept.npy", chosen_ids())
    places = {"base": str(base), "kept": str(scratch / "kept.npy"), "target": str(scratch / "target")}
    shrink_side(**places)
    example = scratch / "example"
    (scratch / "target").rename(example)
    sides = [
        Side("benchmarks.init:shrink_side", places),
        Side("benchmarks.init:copy_side", {"source": str(example), "target": places["target"]}),
        Side("benchmarks.init:transformers_side", places),
        Side("benchmarks.init:transformers_side", {**places, "tokenizer_files": False}),
    ]
    ours, copying, plain, weights = alternate(*sides)
    shutil.rmtree(base)
    shutil.rmtree(example)
    time_of, memory_of = "shrinking 568 M parameters to 46,166 ids", "peak memory of shrinking"
    return [
        row("shrink_time_vs_copy", time_of, "s", ours.seconds, "copying what is written", copying.seconds, "lower"),
        row("shrink_time_vs_transformers", time_of, "s", ours.seconds, "transformers", plain.seconds, "lower"),
        row(
            "shrink_time_vs_transformers_weights_alone", time_of, "s",
            ours.seconds, "transformers, without its tokenizer", weights.seconds, "lower",
        ),
        row(
            "shrink_memory_vs_transformers", memory_of, "bytes",
            ours.peak_bytes, "transformers", plain.peak_bytes, "lower",
        ),
    ]  # fmt: skip


def counting(texts: list[str], scratch: Path) -> list[dict[str, Any]]:
    """Counting pieces over real texts: MB per second, with identical counts."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    (scratch / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    sides = [
        Side(f"benchmarks.init:{name}", {"texts": str(scratch / "texts.json"), "counts": str(scratch / f"{name}.npy")})
        for name in ("count_by_words", "count_by_encoding")
    ]
    ours, theirs = alternate(*sides)
    counts = [np.load(side.arguments["counts"]) for side in sides]
    assert np.array_equal(*counts), "the counts differ"
    what = f"counting the pieces of {megabytes:.1f} MB of Russian texts, identical counts"
    speeds = [megabytes / side.seconds for side in (ours, theirs)]
    return [row("count_speed_vs_encode_batch", what, "MB/s", speeds[0], "encode_batch_fast", speeds[1], "higher")]


def chosen_ids() -> npt.NDArray[np.int64]:
    """As many ids as bge-m3_en_ru has, spread over the vocabulary: the special tokens and a random choice."""
    from training.vocabulary.tokenizer_file import TokenizerFile

    size = TokenizerFile.read(true_tokenizer()).size
    free = np.random.default_rng(SEED).choice(np.arange(4, size - 1), KEPT - 5, replace=False)
    return np.sort(np.concatenate([np.arange(4), free, [size - 1]]))


def make_large_base(folder: Path) -> None:
    """Write a random base of bge-m3's shape with both tokenizer files."""
    from configs.schema.init import BaseConfig
    from training.bases.folder import write_modules, write_tokenizer_config
    from training.bases.random_model import model_config, random_model
    from training.vocabulary.tokenizer_file import TokenizerFile

    folder.mkdir()
    config = BaseConfig(name="large", hidden=1024, layers=24, max_length=8192)
    shutil.copyfile(true_tokenizer(), folder / "tokenizer.json")
    tokenizer = TokenizerFile.read(folder / "tokenizer.json")
    assert tokenizer.scores is not None
    write_sentencepiece(tokenizer.pieces, tokenizer.scores, folder / "sentencepiece.bpe.model")
    write_tokenizer_config(folder, config.max_length)
    write_modules(folder, config, config.hidden)
    random_model(model_config(config, tokenizer.size), SEED).save_pretrained(folder)
    for path in files_under(folder):
        synchronise(path)


def write_sentencepiece(pieces: list[str], scores: npt.NDArray[np.float64], path: Path) -> None:
    """Write a SentencePiece file of XLM-R's pieces (without its normaliser, which does not matter here)."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    model = ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in zip(pieces[4:-1], scores[4:-1], strict=True):
        model.pieces.add(piece=piece, score=score, type=1)
    path.write_bytes(model.SerializeToString())


def true_tokenizer() -> Path:
    """XLM-R's own `tokenizer.json`, from the package that the demo uses."""
    from training.bases.sources import TOKENIZER, package_file

    return package_file(*TOKENIZER)


def shrink_side(base: str, kept: str, target: str) -> float:
    """Ours: weights, both tokenizer files, settings and modules."""
    from training.vocabulary.shrinking import shrink
    from training.vocabulary.tokenizer_file import TokenizerFile

    def make(folder: Path) -> None:
        folder.mkdir()
        shrink(Path(base), folder, TokenizerFile.read(Path(base) / "tokenizer.json"), np.load(kept))

    return timed(make, Path(target))


def copy_side(source: str, target: str) -> float:
    """The least possible reading and writing: a copy of the shrunk folder."""
    return timed(lambda folder: shutil.copytree(source, folder), Path(target))


def transformers_side(base: str, kept: str, target: str, tokenizer_files: bool = True) -> float:
    """The plain way: load, slice the embedding, save; the same for the tokenizer. Imports are not timed."""
    import torch
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
    from tokenizers import Tokenizer
    from transformers import XLMRobertaModel, XLMRobertaTokenizer  # the Auto classes would import them while loading

    def make(folder: Path) -> None:
        ids = np.load(kept)
        model = XLMRobertaModel.from_pretrained(base, dtype=torch.float32)
        rows = model.get_input_embeddings().weight.data[torch.from_numpy(ids)]
        model.set_input_embeddings(torch.nn.Embedding(len(rows), rows.shape[1], padding_idx=1, _weight=rows))
        model.config.vocab_size = len(rows)
        model.save_pretrained(folder)
        if tokenizer_files:
            tokenizer = XLMRobertaTokenizer.from_pretrained(base)
            parts = json.loads(tokenizer.backend_tokenizer.to_str())
            parts["model"]["vocab"] = [parts["model"]["vocab"][index] for index in ids]
            parts["added_tokens"][-1]["id"] = len(ids) - 1  # the mask
            tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
            tokenizer.save_pretrained(folder)
            pieces = ModelProto.FromString((Path(base) / "sentencepiece.bpe.model").read_bytes())
            chosen = [pieces.pieces[index] for index in (0, 1, 2, *(ids[4:-1] - 1))]  # one less: no padding piece
            del pieces.pieces[:]
            pieces.pieces.extend(chosen)
            (folder / "sentencepiece.bpe.model").write_bytes(pieces.SerializeToString())

    return timed(make, Path(target))


def count_by_words(texts: str, counts: str) -> float:
    """Ours: distinct words, each segmented once."""
    from training.vocabulary.counting import WordCounter, piece_counts

    loaded, tokenizer = load(texts)
    started = time.perf_counter()
    counter = WordCounter(tokenizer)
    counter.add(loaded)
    found = piece_counts(tokenizer, counter.words(), counter.whole, tokenizer.get_vocab_size())
    seconds = time.perf_counter() - started
    np.save(counts, found)
    return seconds


def count_by_encoding(texts: str, counts: str) -> float:
    """The plain way: every text, in the tokenizer's own parallel batches."""
    loaded, tokenizer = load(texts)
    started = time.perf_counter()
    found = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for first in range(0, len(loaded), 10_000):
        encodings = tokenizer.encode_batch_fast(loaded[first : first + 10_000], add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])
        found += np.bincount(ids, minlength=len(found))
    seconds = time.perf_counter() - started
    np.save(counts, found)
    return seconds


def load(texts: str) -> tuple[list[str], Any]:
    """The texts and XLM-R's tokenizer."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    loaded = json.loads(Path(texts).read_text(encoding="utf-8"))
    return loaded, Tokenizer.from_file(str(true_tokenizer()))


if __name__ == "__main__":
    run_main(main)
