"""Normalising texts and dropping pairs, on whole columns at a time."""

import html

import numpy as np
import polars as pl
import pyarrow as pa

from configs.schema.data import CleaningConfig, SourceConfig

# A text without any of these is clean as it stands, which is true of nearly all: one scan instead of six.
SUSPECT = r"[\p{M}[\p{Cc}--\n]\p{Cf}\p{Co}&<\u{2126}\u{212A}\u{212B}\u{FFFD}]|[^\S \n]|\s\s|^\s|\s$"
TAGS = (
    r"(?i)<!--.*?-->|<\|[a-z_]{1,20}\|>|</?(?:a|abbr|article|b|blockquote|body|br|center|code|cite|dd|div|dl|dt|em|"
    r"figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|li|link|main|mark|meta|nav|noindex|"
    r"ol|option|p|pre|q|s|script|section|select|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|"
    r"title|tr|tt|u|ul|video|pad|unk|mask|cls|sep|bos|eos)(?:\s[^<>]*)?/?>"
)
INVISIBLE = r"[\p{Cc}\p{Cf}\p{Co}\u{FFFD}&&[^\t\n\r]]"
HEAD = 200  # characters of a text that decide about its script

EMPTY, SHORT, LONG = "empty text", "too short", "too long"
EQUAL, SCRIPT = "anchor equals positive", "other script"


def normalised(texts: pl.Series, cleaning: CleaningConfig, strip_markup: bool) -> pl.Series:
    """The texts in one Unicode form, with single spaces, no control characters and, if asked, no markup.

    Line breaks stay (they separate a passage's title from its text). Nulls become empty.
    """
    texts = texts.fill_null("")
    if cleaning.unicode == "NFKC":
        texts = texts.str.normalize("NFKC")
    suspect = texts.str.contains(SUSPECT)
    if suspect.any():
        places = suspect.arg_true()
        texts = texts.scatter(places, _rewritten(texts.gather(places), cleaning.unicode, strip_markup))
    if cleaning.cut_characters is not None:
        texts = texts.str.slice(0, cleaning.cut_characters)
    return texts


def _rewritten(texts: pl.Series, unicode: str, strip_markup: bool) -> pl.Series:
    if unicode != "none":
        texts = texts.str.normalize(unicode)  # type: ignore[arg-type]
    if strip_markup:
        if texts.str.contains("&", literal=True).any():
            texts = pl.Series(texts.name, [html.unescape(text) for text in texts.to_list()], pl.String)
        texts = texts.str.replace_all(TAGS, " ")
    texts = texts.str.replace_all(INVISIBLE, "")
    return texts.str.replace_all(r"[^\S\n]+", " ").str.replace_all(r"\s*\n\s*", "\n").str.strip_chars()


def drop_reasons(pairs: pl.DataFrame, cleaning: CleaningConfig, source: SourceConfig) -> pl.Series:
    """For each (anchor, positive): why it is dropped, or null."""
    reasons = no_reason(len(pairs))
    lengths = [pairs[column].str.len_chars() for column in ("anchor", "positive")]
    shortest, longest = np.minimum(lengths[0], lengths[1]), np.maximum(lengths[0], lengths[1])
    tests = [
        (SCRIPT, _of_other_script(pairs, cleaning, source)),
        (EQUAL, _equal(pairs["anchor"], pairs["positive"])),
        (LONG, pl.Series(longest > cleaning.max_characters)),
        (SHORT, pl.Series(shortest < cleaning.min_characters)),
        (EMPTY, pl.Series(shortest == 0)),
    ]
    for reason, failed in tests:  # the last one that fails is the reason given
        if failed.any():
            reasons = reasons.zip_with(~failed, pl.Series([reason]))
    return reasons


def no_reason(rows: int) -> pl.Series:
    """A column of reasons that drops nothing."""
    return pl.Series("reason", [None], pl.String).new_from_index(0, rows)


def _equal(first: pl.Series, second: pl.Series) -> pl.Series:
    """Equality but for case, punctuation and spaces; the costly form only where lengths allow it."""
    lengths = [texts.str.len_bytes().cast(pl.Int64) for texts in (first, second)]
    likely = ((lengths[0] - lengths[1]).abs() <= lengths[0] // 4 + 16).arg_true()
    equal = np.zeros(len(first), bool)
    if len(likely):
        equal[likely.to_numpy()] = (comparable(first.gather(likely)) == comparable(second.gather(likely))).to_numpy()
    return pl.Series(equal)


def comparable(texts: pl.Series) -> pl.Series:
    """Letters and digits in lower case, single spaces between words, ё as е: what equality of texts is judged on."""
    lower = texts.str.to_lowercase().str.replace_all("ё", "е", literal=True)
    return lower.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(" ")


def _of_other_script(pairs: pl.DataFrame, cleaning: CleaningConfig, source: SourceConfig) -> pl.Series:
    least = cleaning.min_script_share if source.min_script_share is None else source.min_script_share
    failed = pl.Series([False] * len(pairs), dtype=pl.Boolean)
    if cleaning.script == "none" or least == 0:
        return failed
    for column in ("anchor", "positive"):
        failed = failed | other_script(pairs[column], cleaning.script, least, cleaning.min_letters)
    return failed


def other_script(texts: pl.Series, script: str, least: float, min_letters: int) -> pl.Series:
    """Whether less than the share `least` of the letters at the text's beginning are of `script`."""
    heads = texts.str.slice(0, HEAD)
    foreign = heads.str.contains(rf"[\p{{L}}--\p{{{script}}}]").arg_true()
    failed = np.zeros(len(texts), bool)
    if len(foreign):
        some = heads.gather(foreign)
        letters = some.str.count_matches(r"\p{L}")
        own = some.str.count_matches(rf"\p{{{script}}}")
        failed[foreign.to_numpy()] = ((letters >= min_letters) & (own < letters * least)).to_numpy()
    return pl.Series(failed)


def without_wrong_negatives(pairs: pl.DataFrame, min_characters: int) -> tuple[pl.DataFrame, int]:
    """The pairs without negatives that are empty or equal to the row's anchor or positive, and how many these were."""
    counts = pairs["negatives"].list.len()
    if counts.sum() == 0:
        return pairs, 0
    rows = np.repeat(np.arange(len(pairs)), counts.to_numpy())
    negatives = pairs["negatives"].filter(counts > 0).list.explode()
    wrong = (negatives.str.len_chars() < min_characters).to_numpy().copy()
    for column in ("anchor", "positive"):
        wrong |= _equal(negatives, pairs[column].gather(rows)).to_numpy()
    if not wrong.any():
        return pairs, 0
    kept = regrouped(negatives.filter(pl.Series(~wrong)), np.bincount(rows[~wrong], minlength=len(pairs)))
    return pairs.with_columns(kept.alias("negatives")), int(wrong.sum())


def regrouped(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """A flat column of texts as lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.to_arrow())
    return pl.Series(pl.from_arrow(lists), dtype=pl.List(pl.String))
