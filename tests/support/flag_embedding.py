"""FlagEmbedding's embeddings by a model, in a fresh process: `-m … <folder> <pooling> <text>`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HEADS = ("sparse_linear", "colbert_linear")


def encoded(folder: Path, texts: list[str], environment: dict[str, str], pooling: str = "cls") -> dict[str, Any]:
    """The dense, sparse and multi-vector embeddings of the texts, and whether the folder's heads were loaded."""
    command = [sys.executable, "-m", "tests.support.flag_embedding", str(folder), pooling, *texts]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(folder: str, pooling: str, *texts: str) -> None:
    import torch
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(folder, pooling_method=pooling, use_fp16=False, devices="cpu")
    found = model.encode(list(texts), return_dense=True, return_sparse=True, return_colbert_vecs=True)
    loaded = {name: getattr(model.model, name).state_dict() for name in HEADS}
    stored = {name: torch.load(f"{folder}/{name}.pt", weights_only=True) for name in HEADS}
    same = all(torch.equal(loaded[name][key], stored[name][key]) for name in HEADS for key in stored[name])
    sparse = [{token: float(weight) for token, weight in words.items()} for words in found["lexical_weights"]]
    multi_vector = [vectors.tolist() for vectors in found["colbert_vecs"]]
    embeddings = {"heads": same, "dense": found["dense_vecs"].tolist(), "sparse": sparse, "multi_vector": multi_vector}
    print(json.dumps(embeddings))


if __name__ == "__main__":
    main(*sys.argv[1:])
