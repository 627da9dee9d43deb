"""Hard negatives for sets that have none, by sentence-transformers' own miner."""

import contextlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data.config import MiningConfig
from data.pair_files import PairWriter
from pipeline.artefact import file_sha256, files_under
from pipeline.models import fetched, load_folder, mirrored
from pipeline.revisions import Revision, lock_state

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SKIPPED = re.compile(r"Skipped ([\d,]+) potential negatives \(([\d.]+)%\) due to the (\w+)")
WRITE_ROWS = 16_384


def hub_revision(config: MiningConfig) -> Revision | None:
    """What is asked of the Hub; None where the model is a folder."""
    if not config.model or Path(config.model).is_dir():
        return None
    return Revision("model", config.model, config.revision or "main")


def model_state(config: MiningConfig, mirror: str | None) -> list[Any]:
    """What tells one mining model from another: contents of a folder, revision of a Hub id."""
    asked = hub_revision(config)
    folder = mirrored(asked.hub, mirror) if asked else Path(str(config.model))
    if folder:
        return [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files_under(folder)]
    return [config.model, config.revision, *lock_state([asked] if asked else [])]


def mine(path: Path, config: MiningConfig, name: str, mirror: str | None) -> dict[str, Any]:
    """Give every pair of the file up to `config.negatives` mined negatives.

    Candidates are the positives of the same set. One whose score comes within the relative margin of the positive's
    is taken for an unmarked answer and dropped.

    Returns:
        `negatives` written, `pairs_without` any, `false_negatives`: share of the candidates that were dropped, and
        `model` and `revision` of what mined.
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

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


def _loaded(config: MiningConfig, mirror: str | None) -> tuple["SentenceTransformer", str]:
    """The model that mines, and where it stood: a commit, the mirror, or a local folder."""
    asked = hub_revision(config)
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
