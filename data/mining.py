"""Hard negatives for sets that have none: passages of the set that a model ranks near an anchor, not too near."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from configs.schema.config import Config
from configs.schema.data import MiningConfig
from data.encoders import open_auxiliary_model
from data.fingerprints import mining_length
from data.pair_files import ROWS_AT_ONCE, PairWriter, read_frames
from data.pairs.cleaning import comparable
from data.pairs.hashing import text_hashes
from pipeline.core.artefact import replacing
from pipeline.core.console import log
from pipeline.core.embedding import prompts_of

SHOWN_ROWS = 5  # mined rows shown in the ledger
MOST_COSINES = 2**26  # in memory at once
TOO_MANY_WITHOUT = 0.2  # share of the rows


@dataclass(frozen=True)
class Mined:
    """The negatives found for each pair, and the candidates left out."""

    negatives: list[list[int]]  # per pair: indices of passages, the nearest first
    candidates: int
    too_near: int  # of the candidates

    @property
    def without(self) -> int:
        """Pairs without a mined negative."""
        return sum(not found for found in self.negatives)


def mine(path: Path, name: str, config: Config) -> dict[str, Any]:
    """Add up to `negatives` mined negatives to every pair of the set's file; rows with a score below 1 get none.

    Returns:
        `negatives` written, `pairs_without` any, `false_negatives`: share of the candidates that were dropped,
        `samples`: some mined rows, and the miner's `model` and `revision`.
    """
    settings, side = config.data.mining, config.data.all_sources[name].side
    encoder = open_auxiliary_model(config, settings.wanted, "data.mining.model")
    pairs = pl.concat(read_frames(path))
    positive = pairs["score"].fill_null(1.0) >= 1 if "score" in pairs.columns else pairs["anchor"].is_not_null()
    asked, texts = pairs.filter(positive), pairs["positive"].unique(maintain_order=True).to_list()
    anchors, place = asked["anchor"].to_list(), {text: number for number, text in enumerate(texts)}
    known = known_texts(pairs, place, both_ways=side == "symmetric")
    length, prompts = mining_length(config, side), prompts_of(encoder.model, side)
    query = prompts.anchor if settings.query_prompt is None else settings.query_prompt
    document = prompts.positive if settings.passage_prompt is None else settings.passage_prompt
    found = Mined([], candidates=0, too_near=0)
    if anchors:
        log.info("%s: mining negatives for %d anchors among %d passages", name, len(anchors), len(texts))
        found = hard_negatives(
            torch.from_numpy(encoder.embed(anchors, query, length)),
            torch.from_numpy(encoder.embed(texts, document, length)).to(encoder.model.device),
            [place[text] for text in asked["positive"]],
            [*compress(known, positive)],
            settings,
        )
    negatives: list[list[str]] = [[]] * len(pairs)
    for row, numbers in zip(positive.arg_true(), found.negatives, strict=True):
        negatives[row] = [texts[number] for number in numbers]
    column = pl.Series("negatives", negatives, dtype=pl.List(pl.String))
    with replacing(path) as temporary, PairWriter(temporary, "score" in pairs.columns) as writer:
        for some in pairs.with_columns(column).iter_slices(ROWS_AT_ONCE):
            writer.write(some)
    _warn_of_gaps(name, found)
    shown = asked.with_columns(column.filter(positive)).filter(pl.col("negatives").list.len() > 0)
    return {
        "negatives": sum(map(len, found.negatives)),
        "pairs_without": found.without,
        "false_negatives": found.too_near / max(found.candidates, 1),
        "samples": _samples(shown),
        "model": settings.model,
        "revision": encoder.revision,
    }


def known_texts(pairs: pl.DataFrame, place: dict[str, int], both_ways: bool) -> list[np.ndarray]:
    """For each pair the sorted indices of all texts paired with its anchor's form, and of that form itself.

    `place` maps each positive to its index, in order. `both_ways`: a pair has no direction. Pairs whose anchors have
    the same form share an array: an anchor, such as the name of a class, may have a text for every second row.
    """
    of_text, of_anchor = forms(pl.Series([*place])), forms(pairs["anchor"])
    places, known = defaultdict[int, list[int]](list), defaultdict[int, set[int]](set)
    for number, form in enumerate(of_text):
        places[form].append(number)
    for anchor, positive in zip(of_anchor, pairs["positive"], strict=True):
        text = of_text[place[positive]]
        known[anchor].update(places[text], places.get(anchor, ()))
        if both_ways and anchor in places:
            known[text].update(places[anchor])
    found = {anchor: np.array(sorted(texts)) for anchor, texts in known.items()}
    return [found[anchor] for anchor in of_anchor]


def forms(texts: pl.Series) -> list[int]:
    """Keys of texts, equal where cleaning treats the texts as equal: the texts of a million pairs take gigabytes."""
    return text_hashes(comparable(texts)).tolist()


def hard_negatives(
    anchors: Tensor,
    passages: Tensor,
    positives: Sequence[int],
    known: Sequence[Sequence[int] | np.ndarray],
    settings: MiningConfig,
) -> Mined:
    """The passages nearest to each anchor that are neither known answers nor so near that they may be answers.

    Candidates have rank `range_min` to `range_max` by cosine. One that scores within `margin` of the positive, or
    above it, is treated as an unlabelled answer and dropped. The margin is in standard deviations of the anchor's
    cosines with all passages, which are 0.02 for one model and 0.15 for another.

    Args:
        anchors: (pairs, dimension).
        passages: (passages, dimension), on the device to compute on.
        positives: per pair, the index of its positive in `passages`.
        known: per pair, the indices of passages that can't be its negatives, including its positive.
    """
    passages = normalize(passages, dim=1)
    first = min(settings.range_min, max(0, len(passages) - settings.negatives - 1))
    last = min(settings.range_max, len(passages))
    negatives, candidate_count, too_near = list[list[int]](), 0, 0
    step = max(1, MOST_COSINES // len(passages))
    for start in range(0, len(anchors), step):
        cosines = normalize(anchors[start : start + step].to(passages.device), dim=1) @ passages.T
        own = cosines[torch.arange(len(cosines)), torch.tensor(positives[start : start + step])]
        spread = cosines.std(1, correction=min(1, len(passages) - 1))  # 0 for a single passage, where torch would warn
        limit = torch.full_like(own, math.inf) if settings.margin is None else own - settings.margin * spread
        left_out = known[start : start + step]
        rows = np.repeat(np.arange(len(left_out)), [*map(len, left_out)])
        cosines[torch.from_numpy(rows), torch.from_numpy(np.concatenate(left_out))] = -math.inf
        near, places = cosines.topk(last, dim=1)
        candidates = near[:, first:].isfinite()
        allowed = candidates & (near[:, first:] <= limit[:, None])
        taken = allowed & (allowed.cumsum(1) <= settings.negatives)
        negatives += [row[some].tolist() for row, some in zip(places[:, first:].cpu(), taken.cpu(), strict=True)]
        candidate_count += int(candidates.sum())
        too_near += int((candidates & ~allowed).sum())
    return Mined(negatives, candidate_count, too_near)


def _warn_of_gaps(name: str, found: Mined) -> None:
    rows = len(found.negatives)
    if not rows:
        log.warning("%s: no row is a positive pair, so nothing is mined", name)
    if found.without > TOO_MANY_WITHOUT * rows:
        what = "%s: %d of %d rows have no mined negative (%.0f %%)"
        advice = "; a smaller data.mining.margin or range_min, or a larger range_max, gives more"
        log.warning(what + advice, name, found.without, rows, 100 * found.without / rows)


def _samples(rows: pl.DataFrame) -> list[dict[str, str]]:
    """Some mined rows, evenly spread."""
    places = np.linspace(0, len(rows), min(SHOWN_ROWS, len(rows)), endpoint=False, dtype=int)
    chosen = rows[places.tolist()].select("anchor", "positive", negative=pl.col("negatives").list.first())
    return chosen.to_dicts()
