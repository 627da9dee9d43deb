"""Hard negatives for sets that have none, by sentence-transformers' own miner."""

import contextlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from configs.schema.data import MiningConfig
from data.fingerprints import miner_on_hub
from data.pair_files import PairWriter
from pipeline.core.hub import mirrored
from pipeline.core.models import fetched, load_folder

SKIPPED = re.compile(r"Skipped ([\d,]+) potential negatives \(([\d.]+)%\) due to the (\w+)")
WRITE_ROWS = 16_384


def mine(path: Path, config: MiningConfig, mirror: str | None) -> dict[str, Any]:
    """Give every pair of the file up to `config.negatives` mined negatives.

    Candidates are the positives of the same set. One whose score comes within the relative margin of the positive's
    is taken for an unmarked answer and dropped.

    Returns:
        `negatives` written, `pairs_without` any, `false_negatives`: share of the candidates that were dropped, and
        `model` and `revision` of what mined.
    """
    model, revision = _loaded(config, mirror)
    pairs = pl.read_parquet(path)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        mined = mine_hard_negatives(
            Dataset.from_dict({column: pairs[column].to_list() for column in ("anchor", "positive")}),
            model,
            range_min=min(config.range_min, max(0, pairs["positive"].n_unique() - config.negatives - 1)),
            range_max=config.range_max,
            relative_margin=config.relative_margin,
            num_negatives=config.negatives,
            query_prompt=config.query_prompt,
            corpus_prompt=config.passage_prompt,
            batch_size=config.batch_size,
            output_format="triplet",
        )
    negatives: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in mined:
        negatives[row["anchor"], row["positive"]].append(row["negative"])
    found = [negatives.get(pair, []) for pair in pairs.select("anchor", "positive").iter_rows()]
    _rewrite(path, pairs.with_columns(pl.Series("negatives", found, dtype=pl.List(pl.String))))
    return {
        "negatives": sum(map(len, found)),
        "pairs_without": sum(not texts for texts in found),
        "false_negatives": _dropped_share(report.getvalue()),
        "model": config.model,
        "revision": revision,
    }


def _loaded(config: MiningConfig, mirror: str | None) -> tuple[SentenceTransformer, str]:
    """The model that mines, and where it stood: a commit, the mirror, or a local folder."""
    asked = miner_on_hub(config)
    if asked is None:
        folder, revision = Path(str(config.model)), "local folder"
    elif inside := mirrored(asked.hub, mirror):
        folder, revision = inside, f"mirror of {asked.revision}"
    else:
        folder = fetched(asked.hub, asked.revision, "data.mining.model")
        revision = folder.name
    return load_folder(folder, remedy="mend data.mining.model"), revision


def _dropped_share(report: str) -> float:
    """The share of candidates that the miner's report says it dropped for their margin."""
    shares = {reason: float(share) / 100 for _, share, reason in SKIPPED.findall(report)}
    return shares.get("relative_margin", 0.0)


def _rewrite(path: Path, pairs: pl.DataFrame) -> None:
    temporary = path.with_suffix(".mined")
    with PairWriter(temporary, "score" in pairs.columns) as writer:
        for some in pairs.iter_slices(WRITE_ROWS):
            writer.write(some)
    temporary.replace(path)
