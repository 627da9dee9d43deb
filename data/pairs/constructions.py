"""How rows become pairs: first candidates, then the construction's choice among those that pass cleaning.

A construction maps a frame of roles to anchor, positive, negatives, score; `choice`, equal for candidates of which
only the first is used; and `row`, which orders the result. A row's negatives are all those it may use.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from configs.schema.data import SourceConfig
from data.pairs.cleaning import flat_negatives, regrouped, with_negatives
from data.pairs.hashing import combined, text_hashes

PAIRS = {"anchor": pl.String(), "positive": pl.String(), "negatives": pl.List(pl.String), "score": pl.Float32()}
GROUPED = ("nli", "paraphrase_groups")  # need all rows of a group at once
CHAT = (
    r"(?s)<\|(?:user|prompter|human)\|>\s*(?P<anchor>.*?)\s*(?:</?s>|\s)*"
    r"<\|(?:assistant|bot)\|>\s*(?P<positive>.*?)\s*(?:</s>|<\||$)"
)

Construction = Callable[[pl.DataFrame, SourceConfig], pl.DataFrame]
NO_PAIRS = pl.DataFrame(schema=PAIRS)
NO_NEGATIVES = pl.lit([], dtype=pl.List(pl.String)).alias("negatives")
NO_SCORE = pl.lit(None, dtype=pl.Float32).alias("score")
PLACE = pl.int_range(pl.len())
NO_CHOICE = (PLACE.alias("choice"), PLACE.alias("row"))
IS_POSITIVE = pl.col("score").is_null() | (pl.col("score") == 1)
SPARE = 64  # candidate negatives of an entailment, of which the first usable one is taken


def turns(rows: pl.DataFrame) -> pl.DataFrame:
    """The first user turn and its answer from a column of chat markup, as roles of `pairs`."""
    groups = rows["text"].str.extract_groups(CHAT).struct.unnest()
    return groups.select(pl.col("anchor", "positive").fill_null(""))


def pairs(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """(anchor, positive), unchanged."""
    return rows.select("anchor", "positive", NO_NEGATIVES, NO_SCORE, *NO_CHOICE)


def triplets(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """(anchor, positive) with the row's negatives."""
    return rows.select("anchor", "positive", pl.col("negative").alias("negatives"), NO_SCORE, *NO_CHOICE)


def scored_pairs(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """(anchor, positive) with the score scaled from the file's range to 0–1; or only the best-scored pairs."""
    assert source.score_range is not None
    least, most = source.score_range
    score = ((pl.col("score") - least) / (most - least)).cast(pl.Float32)
    made = rows.select("anchor", "positive", NO_NEGATIVES, score, *NO_CHOICE)
    return made if source.has_scores else made.filter(pl.col("score") == 1).with_columns(NO_SCORE)


def query_pos_neg(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """A query with lists of positives and negatives: matched by position if `list_length` is set, else all with all."""
    names = {"query": "anchor", "pos": "positive", "neg": "negatives"}
    place = pl.int_ranges(pl.col("pos").list.len()).alias("place")
    rows = rows.select(*names, place, PLACE.alias("choice")).rename(names)
    made = rows.explode("positive", "place", empty_as_null=False)
    if source.list_length:
        own = pl.col("negatives").list.get("place", null_on_oob=True)
        made = made.with_columns(pl.concat_list(own).list.drop_nulls().alias("negatives"))
    choice, row = NO_CHOICE
    return made.select(
        "anchor", "positive", "negatives", NO_SCORE, "choice" if source.positives == "first" else choice, row
    )


def title_text_summary(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """Two pairs per article: (title, text) and (title, summary)."""
    both = rows.select(pl.col("title").alias("anchor"), pl.concat_list("text", "summary").alias("positive"))
    return both.explode("positive").select("anchor", "positive", NO_NEGATIVES, NO_SCORE, *NO_CHOICE)


def nli(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """Entailments as pairs (premise, hypothesis); the k-th takes the k-th negative hypothesis of the same premise.

    The ones after it follow, as replacements for an unusable one. Labels under `scores` become additional rows with
    that score; entailments then get score 1.
    """
    rows = rows.sort(_order(rows), maintain_order=True)
    positives = rows.filter(pl.col("label") == "entailment").with_columns(PLACE.over("group").alias("k"))
    negatives = rows.filter(pl.col("label") == (source.negative_label or "")).sort("group", maintain_order=True)
    places = negatives.with_row_index("first").group_by("group").agg(pl.col("first").min(), count=pl.len())
    made = positives.join(places, on="group", how="left", maintain_order="left")
    k, first, count = (made[name].fill_null(0).to_numpy().astype(np.int64) for name in ("k", "first", "count"))
    taken = np.minimum(count, SPARE)  # a list of all would grow with the square of the group
    row = np.repeat(np.arange(len(made)), taken)
    place = np.arange(len(row)) - np.repeat(taken.cumsum() - taken, taken)  # in the row's list
    following = negatives["hypothesis"].gather(first[row] + (k[row] + place) % count[row])
    made = made.with_columns(
        regrouped(following, taken).alias("negatives"),
        pl.lit(1.0 if source.has_scores else None, dtype=pl.Float32).alias("score"),
        (pl.col("row").min().over("group") if source.pairs_per_group == "one" else pl.col("row")).alias("choice"),
    )
    scored = rows.filter(pl.col("label").is_in(list(source.kept_scores)))
    scores = pl.col("label").replace_strict(source.kept_scores, default=None, return_dtype=pl.Float32).alias("score")
    scored = scored.with_columns(NO_NEGATIVES, scores, pl.col("row").alias("choice"))
    names = {"premise": "anchor", "hypothesis": "positive"}
    columns = [*names, "negatives", "score", "choice", "row"]
    return pl.concat([made.select(columns), scored.select(columns)]).rename(names)


def paraphrase_groups(rows: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """The first two different texts of each group, compared by the column `form` if present."""
    text = "form" if "form" in rows.columns else "text"
    rows = rows.sort(_order(rows), maintain_order=True).unique(["group", text], keep="first", maintain_order=True)
    groups = rows.group_by("group", maintain_order=True).agg(pl.col("text").head(2), pl.col("row").min())
    groups = groups.filter(pl.col("text").list.len() == 2)
    first, second = pl.col("text").list.get(0).alias("anchor"), pl.col("text").list.get(1).alias("positive")
    return groups.select(first, second, NO_NEGATIVES, NO_SCORE, pl.col("group").alias("choice"), "row")


def _order(rows: pl.DataFrame) -> list[pl.Expr]:
    """Sort keys: the configured order as a number where possible, then as text, then the file's order."""
    if "order" not in rows.columns:
        return [pl.col("row")]
    return [pl.col("order").cast(pl.Int64, strict=False), pl.col("order"), pl.col("row")]


def first_choices(candidates: pl.DataFrame, source: SourceConfig) -> pl.DataFrame:
    """The first candidate of each choice, in row order; with `need_negative` only those with a negative."""
    if source.need_negative:
        candidates = candidates.filter(~IS_POSITIVE | (pl.col("negatives").list.len() > 0))
    return candidates.unique("choice", keep="first", maintain_order=True).sort("row", maintain_order=True)


def most_negatives(source: SourceConfig) -> int | None:
    """The most negatives that a pair takes; None: all."""
    return 1 if source.construction == "nli" else source.max_negatives


def with_chosen_negatives(made: pl.DataFrame, source: SourceConfig, seed: int) -> pl.DataFrame:
    """At most `max_negatives` per row, chosen by its texts and the seed; or one row for each negative."""
    if source.negatives == "none":
        return made.with_columns(NO_NEGATIVES)
    if source.construction == "nli":
        made = made.with_columns(pl.col("negatives").list.head(1))
    elif source.max_negatives is not None:
        made = _sampled(made, source.max_negatives, seed)
    if source.negatives_as_rows:
        made = made.explode("negatives", empty_as_null=True).with_columns(pl.concat_list("negatives").list.drop_nulls())
    return made


def _sampled(made: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """Keep the `most` negatives with the smallest keys in each row, in their original order."""
    negatives, rows = flat_negatives(made)
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)  # within the row's list
    row_keys = combined(text_hashes(made["anchor"], seed), text_hashes(made["positive"], seed))
    keys = combined(row_keys[rows], places.astype(np.uint64))
    ranks = np.empty(len(rows), np.int64)
    ranks[np.lexsort([keys, rows])] = places
    return with_negatives(made, negatives, rows, ranks < most)


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
