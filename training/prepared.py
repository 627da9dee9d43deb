"""All sets of one side, tokenised, with their dev sets and prompts."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from sentence_transformers import SentenceTransformer

from configs.schema.config import SIDES
from configs.schema.training import SideConfig
from pipeline.core.errors import UserError
from training.dev_scores import read_dev
from training.tokenization import Prompts, Share, TokenisedSet, tokenised_set


@dataclasses.dataclass(frozen=True)
class PreparedSets:
    """What a run reads: training sets, dev sets as tokens (for the loss) and as texts (for the scores)."""

    train: dict[str, TokenisedSet]
    dev: dict[str, TokenisedSet]
    dev_texts: dict[str, tuple[pa.Table, Prompts]]


def prepare_sets(name: str, side: SideConfig, model: SentenceTransformer, data: Path, cache: Path) -> PreparedSets:
    """Tokenise the sets of the side `name`; raises UserError where there are none, or the config names unknown ones."""
    found = list(set_files(name, data))
    for unknown in side.sets.keys() - {path.stem for _, path in found}:
        raise UserError(
            f"no set of this side is called {unknown}",
            where=f"config key training.{name}.sets.{unknown}",
            remedy=f"choose among {', '.join(path.stem for _, path in found) or 'the sets of data.sources'}",
        )
    wanted = [(of, path) for of, path in found if path.stem not in side.sets or side.sets[path.stem].weight > 0]
    if not wanted:
        raise UserError(
            "there are no pairs to train on", where=f"{data}/{name}", remedy="add sources of this side to data"
        )
    prepared, shares, tokenizer = PreparedSets({}, {}, {}), shares_of(data), model.tokenizer
    for of, path in wanted:
        prompts = prompts_of(model, of)
        angle = of == "symmetric" and side.angle_weight > 0
        train = tokenised_set(path, tokenizer, prompts, side, angle, cache / "train", shares.get(path.stem, Share()))
        prepared.train[path.stem] = train
        dev = data / "dev" / path.name
        if dev.is_file() and (table := read_dev(dev, side.dev_rows)).num_rows:
            prepared.dev[path.stem] = tokenised_set(dev, tokenizer, prompts, side, angle, cache / "dev")
            prepared.dev_texts[path.stem] = table, prompts
    return prepared


def set_files(side: str, data: Path) -> Iterator[tuple[str, Path]]:
    """The data side and file of each set that a training side reads, in a fixed order."""
    for of in SIDES[side]:
        yield from ((of, path) for path in sorted((data / of).glob("*.parquet")))


def shares_of(data: Path) -> dict[str, Share]:
    """What the ledger says about the sets' shares of the batches."""
    ledger = data / "ledger.json"
    if not ledger.is_file():
        return {}
    try:
        sets = json.loads(ledger.read_text(encoding="utf-8"))["sets"]
        shares = {entry["name"]: Share(float(entry.get("weight", 1)), int(entry.get("repeat", 1))) for entry in sets}
        if not all(0 < share.weight < math.inf and share.repeat > 0 for share in shares.values()):
            raise ValueError("a weight or repeat that is not above 0")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"can't read how often sets are seen: {type(error).__name__}: {error}"
        raise UserError(what, where=str(ledger), remedy="make the data again: make data") from None
    return shares


def prompts_of(model: SentenceTransformer, data_side: str) -> Prompts:
    """Symmetric sets take the query prompt on both sides, asymmetric ones query and document."""
    query = model.prompts.get("query") or ""
    document = model.prompts.get("document") or ""
    return Prompts(query, query if data_side == "symmetric" else document)
