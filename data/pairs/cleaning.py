"""Normalises texts and drops pairs, a whole column at a time."""

import html
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from html.entities import html5
from operator import or_

import numpy as np
import polars as pl
import pyarrow as pa

from configs.schema.data import CleaningConfig, SourceConfig

# A text without any of these, like nearly all texts, is already clean: one scan instead of six.
SPACES = r"[^\S \n]|\s\s|^\s|\s$"
# What NFC changes besides combining marks: Hangul vowels and finals, and characters with canonical equivalents.
COMPOSED = (
    r"\u{374}\u{37E}\u{387}\u{958}-\u{95F}\u{9DC}-\u{9DF}\u{A33}-\u{A36}\u{A59}-\u{A5E}\u{B5C}\u{B5D}\u{F43}-\u{F69}"
    r"\u{1160}-\u{11FF}\u{1F71}-\u{1FFD}\u{2126}\u{212A}\u{212B}\u{2329}\u{232A}\u{2ADC}\u{F900}-\u{FB4E}"
    r"\u{1D15E}-\u{1D1C0}\u{2F800}-\u{2FA1D}"
)
SUSPECT = rf"[\p{{M}}[\p{{Cc}}--\n]\p{{Cf}}\p{{Co}}&<\u{{FFFD}}{COMPOSED}]|{SPACES}"
# Markup is a comment, or an HTML tag that contains only attributes: `a <b и c> d` and `x<y` are not tags.
ATTRIBUTE = (
    r"""\s+(?:[a-z_:@][\w:.@-]*\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>`]+)|allowfullscreen|async|autoplay|checked|compact|"""
    r"controls|defer|disabled|hidden|itemscope|loop|multiple|muted|nohref|noshade|nowrap|open|readonly|required|"
    r"reversed|selected)"
)
ELEMENT = (
    r"(?:a|abbr|article|b|blockquote|body|br|center|code|cite|dd|div|dl|dt|em|figure|font|footer|form|h[1-6]|head|"
    r"header|hr|html|i|iframe|img|input|label|li|link|main|mark|meta|nav|noindex|ol|option|p|pre|q|s|script|section|"
    r"select|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|video)"
)
TAGS = rf"(?i)<!--(?s:.*?)-->|<{ELEMENT}(?:{ATTRIBUTE})*\s*/?>|</{ELEMENT}\s*>"
ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][0-9A-Za-z]{1,31});"
# Texts that tokenizers would read as special tokens.
CONTROL_TOKENS = r"(?i)<\|[a-z_]{1,20}\|>|</?(?:s|pad|unk|mask|cls|sep|bos|eos)\s*/?>"
INVISIBLE = r"[\p{Cc}\p{Cf}\p{Co}\u{2028}\u{2029}\u{FFFD}--[\t\n\r]]"
TERMINAL = r"\x1b\[[0-?]*[ -/]*[@-~]"  # escape sequences, such as colours
LINE_ENDS, GAPS = r"[\x0b\x0c\x85\u{2028}\u{2029}]", r"[[\p{Cc}\u{200B}]--[\t\n\r]]"
# Joiners belong to emoji and to letters of scripts with joining forms; elsewhere, as in `сло\u200dво`, they are noise.
JOINED = (
    r"\p{Extended_Pictographic}\p{Emoji_Modifier}\u{FE0F}\p{Arabic}\p{Syriac}\p{Mongolian}\p{Devanagari}\p{Bengali}"
    r"\p{Gurmukhi}\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}"
)
JOINERS = r"[\u{200C}\u{200D}]+"
RULES = ("tags", "entities", "control tokens", "invisible characters", "Unicode form", "spaces")
SCRIPT_CHARACTERS = 200  # at the start of a text, which decide its script
LEAST_LETTERS = 20  # texts with fewer letters pass
EXAMPLES, EXAMPLE_BEFORE, EXAMPLE_CHARACTERS = 3, 20, 60  # per set in the ledger; characters per example
EXAMPLE_CANDIDATES = 24  # changed texts per frame, among which examples are chosen

EMPTY, SHORT, LONG = "empty text", "too short", "too long"
EQUAL, SCRIPT = "anchor equals positive", "other script"

Rewrite = Callable[[pl.Series], pl.Series]


@dataclass
class Changes:
    """What cleaning changed: number of texts by rule, and each rule's first examples as (before, after)."""

    texts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, rule: str, before: pl.Series, after: pl.Series) -> None:
        """Count the texts that differ."""
        changed = (before != after).arg_true()
        if len(changed):
            first = changed.head(EXAMPLE_CANDIDATES)
            examples = [*map(_example, before.gather(first), after.gather(first))]
            self.update(Changes(Counter({rule: len(changed)}), {rule: examples}))

    def update(self, later: "Changes") -> None:
        """Add the changes of later texts."""
        self.texts.update(later.texts)
        for rule, examples in later.examples.items():
            self.examples[rule] = list(dict.fromkeys([*self.examples.get(rule, []), *examples]))[:EXAMPLES]

    def by_rule(self) -> dict[str, int]:
        """The number of texts each rule changed, in the order of the rules."""
        return {rule: self.texts[rule] for rule in RULES if rule in self.texts}

    def chosen(self) -> list[tuple[str, str, str]]:
        """At most three examples as (rule, before, after), of as many rules as possible, in the order of the rules."""
        places = [(place, rule) for place in range(EXAMPLES) for rule in RULES if rule in self.examples]
        found = [(rule, *self.examples[rule][place]) for place, rule in places if place < len(self.examples[rule])]
        return found[:EXAMPLES]


def _example(before: str, after: str) -> tuple[str, str]:
    """Both texts from shortly before their first difference, with invisible characters escaped."""
    shorter = min(len(before), len(after))
    differ = next((place for place in range(shorter) if before[place] != after[place]), shorter)
    start = max(0, differ - EXAMPLE_BEFORE)
    return _shown(before, start), _shown(after, start)


def _shown(text: str, start: int) -> str:
    part = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text[start : start + EXAMPLE_CHARACTERS]
    )
    return f"{'…' * (start > 0)}{part}{'…' * (len(text) > start + EXAMPLE_CHARACTERS)}"


def normalised(texts: pl.Series, cleaning: CleaningConfig, strip_markup: bool, changes: Changes) -> pl.Series:
    """The texts in one Unicode form, with single spaces, no invisible characters and, if requested, no markup.

    Line breaks stay (they separate a passage's title from its text). Nulls become empty.
    """
    texts = texts.fill_null("")
    if cleaning.unicode == "NFKC":
        texts = _changed(texts, "Unicode form", lambda some: some.str.normalize("NFKC"), changes)
    suspect = texts.str.contains(SUSPECT)
    if suspect.any():
        places = suspect.arg_true()
        texts = texts.scatter(places, _rewritten(texts.gather(places), cleaning.unicode, strip_markup, changes))
    return texts


def _changed(texts: pl.Series, rule: str, rewrite: Rewrite, changes: Changes, where: str | None = None) -> pl.Series:
    """The texts rewritten by a rule, which is applied where the pattern occurs; changes are counted."""
    if where is None:
        after = rewrite(texts)
        changes.add(rule, texts, after)
        return after
    places = texts.str.contains(where).arg_true()
    if not len(places):
        return texts
    return texts.scatter(places, _changed(texts.gather(places), rule, rewrite, changes))


def _rewritten(texts: pl.Series, unicode: str, strip_markup: bool, changes: Changes) -> pl.Series:
    if strip_markup:
        # Tags before entities: `&lt;b&gt;` is a text about <b>. Control tokens last: neither step may leave one.
        texts = _changed(texts, "tags", lambda some: some.str.replace_all(TAGS, " "), changes, "<")
        texts = _changed(texts, "entities", _decoded, changes, ENTITY)
        texts = _changed(texts, "control tokens", lambda some: some.str.replace_all(CONTROL_TOKENS, " "), changes, "<")
    texts = _changed(texts, "invisible characters", _visible, changes, INVISIBLE)
    if unicode != "none":
        texts = _changed(texts, "Unicode form", lambda some: some.str.normalize(unicode), changes)  # type: ignore[arg-type]
    return _changed(texts, "spaces", _spaced, changes, SPACES)


def _decoded(texts: pl.Series) -> pl.Series:
    """Character references that end in a semicolon, decoded once."""
    pattern = re.compile(ENTITY)
    return pl.Series(texts.name, [pattern.sub(_character, text) for text in texts], pl.String)


def _character(reference: re.Match[str]) -> str:
    found = reference[0]
    return html.unescape(found) if found[1] == "#" else html5.get(found[1:], found)


def _visible(texts: pl.Series) -> pl.Series:
    """Line ends as line breaks, invisible separators as spaces, other invisible characters removed."""
    texts = texts.str.replace_all(TERMINAL, "").str.replace_all(LINE_ENDS, "\n").str.replace_all(GAPS, " ")
    texts = texts.str.replace_all(rf"[{INVISIBLE}--[\t\n\r\u{{200C}}\u{{200D}}]]", "")
    texts = texts.str.replace_all(rf"([^{JOINED}\u{{200C}}\u{{200D}}]){JOINERS}", "$1")
    return texts.str.replace_all(rf"{JOINERS}([^{JOINED}\u{{200C}}\u{{200D}}]|$)|^{JOINERS}", "$1")


def _spaced(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all(r"[^\S\n]+", " ").str.replace_all(r"\s*\n\s*", "\n").str.strip_chars()


def drop_reasons(
    rows: pl.DataFrame, cleaning: CleaningConfig, source: SourceConfig, columns: Sequence[str] = ("anchor", "positive")
) -> pl.Series:
    """For each row, by its two texts, or one that any pair may get: why it is dropped, or null."""
    texts = [rows[column] for column in columns]
    lengths = [column.str.len_chars() for column in texts]
    shortest, longest = np.minimum(lengths[0], lengths[-1]), np.maximum(lengths[0], lengths[-1])
    least = cleaning.min_script_share if source.min_script_share is None else source.min_script_share
    scripts = [other_script(column, cleaning.script, least) for column in texts if cleaning.script != "none" and least]
    tests = {  # the last one that fails gives the reason
        SCRIPT: reduce(or_, scripts, pl.Series([False])),
        EQUAL: _equal(*texts) if len(texts) == 2 else pl.Series([False]),
        LONG: pl.Series(longest > cleaning.max_characters),
        SHORT: pl.Series(shortest < cleaning.min_characters),
        EMPTY: pl.Series(shortest == 0),
    }
    reasons = no_reason(len(rows))
    for reason, failed in tests.items():
        if failed.any():
            reasons = reasons.zip_with(~failed, pl.Series([reason]))
    return reasons


def no_reason(rows: int) -> pl.Series:
    """A column of drop reasons, all null."""
    return pl.Series("reason", [None], pl.String).new_from_index(0, rows)


def _equal(first: pl.Series, second: pl.Series) -> pl.Series:
    """Equality of comparable forms, or of texts whose form is empty; where lengths and first letters allow it."""
    lengths = [texts.str.len_bytes().cast(pl.Int64) for texts in (first, second)]
    letters = [comparable(texts.str.extract(r"([\p{L}\p{N}])")).str.head(1) for texts in (first, second)]
    alike = (letters[0] == letters[1]).fill_null(True)
    likely = (((lengths[0] - lengths[1]).abs() <= lengths[0] // 4 + 16) & alike).arg_true()
    equal = np.zeros(len(first), bool)
    if len(likely):
        first, second = first.gather(likely), second.gather(likely)
        form = comparable(first)
        equal[likely.to_numpy()] = ((form == comparable(second)) & ((form != "") | (first == second))).to_numpy()
    return pl.Series(equal)


def comparable(texts: pl.Series) -> pl.Series:
    """The form in which texts are compared: lower-case letters and digits, single spaces between words, ё as е."""
    lower = texts.str.to_lowercase().str.replace_all("ё", "е", literal=True)
    return lower.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(" ")


def other_script(texts: pl.Series, script: str, least: float) -> pl.Series:
    """Whether less than the share `least` of the letters at the start of the text belong to `script`."""
    heads = texts.str.slice(0, SCRIPT_CHARACTERS)
    foreign = heads.str.contains(rf"[\p{{L}}--\p{{{script}}}]").arg_true()
    failed = np.zeros(len(texts), bool)
    if len(foreign):
        some = heads.gather(foreign)
        letters = some.str.count_matches(r"\p{L}")
        own = some.str.count_matches(rf"\p{{{script}}}")
        failed[foreign.to_numpy()] = ((letters >= LEAST_LETTERS) & (own < letters * least)).to_numpy()
    return pl.Series(failed)


def without_wrong_negatives(pairs: pl.DataFrame, min_characters: int) -> pl.DataFrame:
    """The pairs without negatives that are empty or equal to the row's anchor or positive."""
    negatives, rows = flat_negatives(pairs)
    wrong = (negatives.str.len_chars() < min_characters).to_numpy().copy()
    for column in ("anchor", "positive") if len(negatives) else ():
        wrong |= _equal(negatives, pairs[column].gather(rows)).to_numpy()
    return with_negatives(pairs, negatives, rows, ~wrong) if wrong.any() else pairs


def flat_negatives(pairs: pl.DataFrame) -> tuple[pl.Series, np.ndarray]:
    """The negatives of all pairs in one column, and the row that each belongs to."""
    counts = pairs["negatives"].list.len().to_numpy()
    return pairs["negatives"].list.explode(empty_as_null=False), np.repeat(np.arange(len(pairs)), counts)


def with_negatives(pairs: pl.DataFrame, negatives: pl.Series, rows: np.ndarray, kept: np.ndarray) -> pl.DataFrame:
    """The pairs with only the `kept` ones of their `flat_negatives`."""
    lists = regrouped(negatives.filter(pl.Series(kept)), np.bincount(rows[kept], minlength=len(pairs)))
    return pairs.with_columns(lists.alias("negatives"))


def regrouped(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """A flat column of texts as lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.to_arrow())
    return pl.Series(pl.from_arrow(lists), dtype=pl.List(pl.String))
