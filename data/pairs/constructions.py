"""How rows become pairs. Every construction takes a frame of roles and gives anchor, positive, negatives, score."""

from collections.abc import Callable

import numpy as np
import polars as pl

from configs.schema.data import SourceConfig
from data.pairs.cleaning import regrouped
from data.pairs.hashing import combined, text_hashes

PAIRS = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String), "score": pl.Float32}
GROUPED = ("nli", "paraphrase_groups")  # need all rows of a group at once
CHAT = (
    r"(?s)<\|(?:user|prompter|human)\|>\s*(?P<anchor>.*?)\s*(?:</?s>|\s)*"
    r"<\|(?:assistant|bot)\|>\s*(?P<positive>.*?)\s*(?:</s>|<\||$)"
)

Construction = Callable[[pl.DataFrame, SourceConfig, int], pl.DataFrame]
NO_NEGATIVES = pl.lit([], dtype=pl.List(pl.String)).alias("negatives")
NO_SCORE = pl.lit(None, dtype=pl.Float32).alias("score")


def turns(rows: pl.DataFrame) -> pl.DataFrame:
    """The first user turn and its answer out of one column of chat markup, as roles of `pairs`."""
    groups = rows["text"].str.extract_groups(CHAT).struct.unnest()
    return groups.select(pl.col("anchor", "positive").fill_null(""))


def pairs(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """(anchor, positive) as they stand."""
    return rows.select("anchor", "positive", NO_NEGATIVES, NO_SCORE)


def triplets(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """(anchor, positive) with the negatives of the row."""
    return with_chosen_negatives(
        rows.select("anchor", "positive", pl.col("negative").alias("negatives"), NO_SCORE), source, seed
    )


def scored_pairs(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """(anchor, positive) with the score brought from the file's range to 0 to 1; or the best pairs alone."""
    assert source.score_range is not None
    least, most = source.score_range
    score = ((pl.col("score") - least) / (most - least)).cast(pl.Float32)
    made = rows.select("anchor", "positive", NO_NEGATIVES, score)
    return made if source.has_scores else made.filter(pl.col("score") == 1).with_columns(NO_SCORE)


def query_pos_neg(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """A query with lists of positives and negatives: read in parallel if `list_length` is set, else all with each."""
    place = pl.int_ranges(pl.col("pos").list.len()).alias("place")
    rows = rows.select(
        pl.col("query").alias("anchor"), pl.col("pos").alias("positive"), pl.col("neg").alias("negatives"), place
    )
    if source.positives == "first":
        rows = rows.with_columns(pl.col("positive", "place").list.head(1))
    made = rows.explode("positive", "place", empty_as_null=False)
    if source.list_length:
        own = pl.col("negatives").list.get("place", null_on_oob=True)
        made = made.with_columns(pl.concat_list(own).list.drop_nulls().alias("negatives"))
    return with_chosen_negatives(made.select("anchor", "positive", "negatives", NO_SCORE), source, seed)


def title_text_summary(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """Two pairs of an article: (title, text) and (title, summary)."""
    both = rows.select(pl.col("title").alias("anchor"), pl.concat_list("text", "summary").alias("positive"))
    return both.explode("positive").select("anchor", "positive", NO_NEGATIVES, NO_SCORE)


def nli(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """Entailments as pairs (premise, hypothesis); the k-th takes the k-th negative hypothesis of the same premise.

    Labels under `scores` become further rows with that score; entailments then have the score 1.
    """
    rows = rows.sort(_order(rows), maintain_order=True)
    position = pl.int_range(pl.len()).over("group").alias("k")
    positives = rows.filter(pl.col("label") == "entailment").with_columns(position)
    if source.pairs_per_group == "one":
        positives = positives.filter(pl.col("k") == 0)
    negatives = rows.filter(pl.col("label") == (source.negative_label or "")).group_by("group", maintain_order=True)
    made = positives.join(
        negatives.agg(pl.col("hypothesis").alias("negatives")), on="group", how="left", maintain_order="left"
    )
    if source.need_negative:
        made = made.filter(pl.col("negatives").is_not_null())
    chosen = pl.col("negatives").list.get(pl.col("k") % pl.col("negatives").list.len())
    made = made.with_columns(
        pl.when(pl.col("negatives").is_null()).then(NO_NEGATIVES).otherwise(pl.concat_list(chosen)).alias("negatives"),
        pl.lit(1.0 if source.kept_scores else None, dtype=pl.Float32).alias("score"),
    )
    scored = rows.filter(pl.col("label").is_in(list(source.kept_scores.keys() - {"entailment"})))
    scores = pl.col("label").replace_strict(source.kept_scores, default=None, return_dtype=pl.Float32).alias("score")
    columns = [
        pl.col("row"),
        pl.col("premise").alias("anchor"),
        pl.col("hypothesis").alias("positive"),
        "negatives",
        "score",
    ]
    both = pl.concat([made.select(columns), scored.with_columns(NO_NEGATIVES, scores).select(columns)])
    return with_chosen_negatives(both.sort("row", maintain_order=True).drop("row"), source, seed)


def paraphrase_groups(rows: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """The first two different texts of each group."""
    rows = rows.sort(_order(rows), maintain_order=True).unique(["group", "text"], keep="first", maintain_order=True)
    groups = rows.group_by("group", maintain_order=True).agg(pl.col("text").head(2), pl.col("row").min())
    groups = groups.filter(pl.col("text").list.len() == 2).sort("row")
    first, second = pl.col("text").list.get(0).alias("anchor"), pl.col("text").list.get(1).alias("positive")
    return groups.select(first, second, NO_NEGATIVES, NO_SCORE)


def _order(rows: pl.DataFrame) -> list[pl.Expr]:
    """Sort keys: the configured order as a number where it is one, then as text, then the file's order."""
    if "order" not in rows.columns:
        return [pl.col("row")]
    return [pl.col("order").cast(pl.Int64, strict=False), pl.col("order"), pl.col("row")]


def with_chosen_negatives(made: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """At most `max_negatives` of each row, chosen by its texts and the seed; or one row for each negative."""
    if source.negatives == "none":
        return made.with_columns(NO_NEGATIVES)
    if source.max_negatives is not None:
        made = made.with_columns(_sampled(made, source.max_negatives, seed))
    if source.negatives_as_rows:
        made = made.explode("negatives", empty_as_null=True).with_columns(pl.concat_list("negatives").list.drop_nulls())
    return made


def _sampled(made: pl.DataFrame, most: int, seed: int) -> pl.Series:
    """The `most` negatives of each row whose keys are smallest, in their own order."""
    counts = made["negatives"].list.len().to_numpy()
    rows = np.repeat(np.arange(len(made)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    row_keys = combined(text_hashes(made["anchor"], seed), text_hashes(made["positive"], seed))
    keys = combined(row_keys[rows], places.astype(np.uint64))
    ranks = np.empty(len(rows), np.int64)
    ranks[np.lexsort([keys, rows])] = places
    flat = made["negatives"].filter(pl.Series(counts > 0)).list.explode()
    kept = ranks < most
    return regrouped(flat.filter(pl.Series(kept)), np.bincount(rows[kept], minlength=len(made))).alias("negatives")


CONSTRUCTIONS: dict[str, Construction] = {
    "pairs": pairs,
    "chat": pairs,  # of `turns`
    "triplets": triplets,
    "scored_pairs": scored_pairs,
    "query_pos_neg": query_pos_neg,
    "title_text_summary": title_text_summary,
    "nli": nli,
    "paraphrase_groups": paraphrase_groups,
}
