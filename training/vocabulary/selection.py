"""Which pieces are kept, and which scripts a language is written in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from configs.schema.data import is_script
from configs.schema.init import InitConfig
from pipeline.core.errors import UserError
from training.vocabulary.tokenizer_file import Ids, TokenizerFile

OTHER = "other"  # all languages that are not asked for
LOW_IDS = 100  # the notebook keeps ids up to this one wherever they occur
# Language -> Unicode scripts, the main one first. A language that is not here needs `init.scripts`.
WRITTEN_IN = {
    "Cyrillic": "ru uk be bg mk kk ky tt ba cv tg mn os sah udm",
    "Latin": "en de fr es it pt nl sv da no nb nn fi et lv lt pl cs sk sl hr bs hu ro tr az uz vi id ms sw eu ca gl",
    "Arabic": "ar fa ur ug",
    "Devanagari": "hi mr ne",
    "Hebrew": "he yi",
    "Greek": "el",
    "Armenian": "hy",
    "Georgian": "ka",
    "Bengali": "bn",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Han": "zh",
    "Ethiopic": "am",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my",
}
SCRIPTS = {
    **{language: [script] for script, languages in WRITTEN_IN.items() for language in languages.split()},
    "sr": ["Cyrillic", "Latin"],
    "ko": ["Hangul", "Han"],
    "ja": ["Hiragana", "Katakana", "Han"],
}
# Digits, punctuation, symbols, soft hyphens and the like belong to no script, and some marks combine with any.
COMMON = r"\p{Script=Common}|\p{Script=Inherited}"


@dataclass(frozen=True)
class Selection:
    """The kept ids, ascending, and the pinned one among them, where the tokenizer has scores."""

    kept: Ids
    pinned: int | None
    reasons: dict[str, int]  # why ids were kept -> how many; an id may have several reasons


def select(
    tokenizer: TokenizerFile, counts: Mapping[str, Ids], config: InitConfig, languages: list[str], needed: Ids
) -> Selection:
    """Choose ids by the config's rule.

    Args:
        counts: language -> how often each id occurs, shape [tokenizer.size]; OTHER has the strictest threshold of all.
        needed: ids that are kept whatever their counts, such as those of the prompts.

    Special tokens and the pieces for single bytes are always kept. So is, of a Unigram tokenizer, one piece with the
    minimum score: the score of an unknown character is the minimum minus 10, so without that piece the segmentation of
    texts with unknown characters could change. And, of a BPE tokenizer, the pieces that are merged to form a kept one.

    Raises UserError: `max_size` has no room for what must be kept.
    """
    unknown = [] if tokenizer.unknown_id is None else [tokenizer.unknown_id]
    specials = _ascending({*tokenizer.special_ids.values(), *unknown})
    must, frequent = {"special": specials, "needed": needed}, frequent_ids(counts, config)
    if tokenizer.bytes:
        must["bytes"] = _ascending(tokenizer.bytes)
    if config.rule == "notebook":  # as for bge-m3_en_ru: also all low ids that occur
        low = [np.flatnonzero(count[: LOW_IDS + 1]) for count in counts.values()]
        frequent = np.unique(np.concatenate([frequent, *low]))
    else:
        belongs = characters_of(scripts_of(languages, config.scripts)).fullmatch  # or to what all scripts share
        must["characters"] = _ascending(old for old, text in enumerate(tokenizer.characters) if belongs(text))
    wanted, pinned = np.unique(np.concatenate([*must.values(), frequent])), None
    if tokenizer.scores is not None:
        pinned = pinned_id(tokenizer.scores, wanted)
        must["pinned"] = np.array([pinned])
    fixed = tokenizer.with_parts(np.unique(np.concatenate(list(must.values()))))
    kept = cut(wanted, fixed, counts, tokenizer.size if config.max_size is None else config.max_size, tokenizer)
    sizes = {reason: len(ids) for reason, ids in (must | {"frequent": frequent}).items()}
    return Selection(kept, pinned, sizes)


def frequent_ids(counts: Mapping[str, Ids], config: InitConfig) -> Ids:
    """Ids that are frequent enough in one language, or that make up `coverage` of each language's occurrences."""
    if config.coverage is None:
        least = {OTHER: max([config.min_count, *config.min_counts.values()]), **config.min_counts}
        seen = [np.flatnonzero(count >= least.get(name, config.min_count)) for name, count in counts.items()]
    else:
        seen = [covering_ids(count, config.coverage) for count in counts.values()]
    return np.unique(np.concatenate(seen))


def covering_ids(count: Ids, coverage: float) -> Ids:
    """The fewest ids with at least this share of all occurrences; of equally frequent ones those with lower ids."""
    order = np.argsort(-count, kind="stable")
    order = order[count[order] > 0]
    running = np.cumsum(count[order])
    if not len(running):
        return order
    return order[: 1 + int(np.searchsorted(running, coverage * running[-1]))]


def pinned_id(scores: NDArray[np.float64], kept: Ids) -> int:
    """A piece with the minimum score: the first of them that is kept anyway, otherwise the first of all."""
    lowest = np.flatnonzero(scores == scores.min())
    among = np.intersect1d(lowest, kept)
    return int(among[0] if len(among) else lowest[0])


def cut(kept: Ids, fixed: Ids, counts: Mapping[str, Ids], size: int, tokenizer: TokenizerFile) -> Ids:
    """At most `size` ids: the fixed ones, then those with the largest mean share of the languages' occurrences.

    Each brings its parts; the first for which there is no room ends the list.
    """
    if len(fixed) > size:
        what = f"max_size {size} would drop special tokens or characters: {len(fixed)} ids must be kept"
        raise UserError(what, where="config key init.max_size", remedy=f"raise it to at least {len(fixed)}")
    spoken = {language: count for language, count in counts.items() if language != OTHER}
    share = sum(count / max(count.sum(), 1) for count in spoken.values())
    if OTHER in counts:
        share = share + counts[OTHER] / max(sum(count.sum() for count in spoken.values()), 1)
    free = np.setdiff1d(kept, fixed)
    chosen = set(fixed.tolist())
    for old in free[np.argsort(-np.asarray(share)[free], kind="stable")].tolist():
        parts = tokenizer.parts(old) - chosen
        if len(chosen) + len(parts) > size:
            break
        chosen |= parts
    return _ascending(chosen)


def _ascending(ids: Iterable[int]) -> Ids:
    return np.array(sorted(ids), dtype=np.int64)


def scripts_of(languages: Iterable[str], further: Iterable[str] = ()) -> list[str]:
    """The scripts of the languages and further ones, each once; raises UserError for unknown ones."""
    scripts: list[str] = []
    for language in languages:
        if language not in SCRIPTS and not further:
            remedy = "give its ISO 639-1 code, as kk and not kz, or its Unicode script under init.scripts, as [Greek]"
            what = f"the script of language {language} is not known"
            raise UserError(what, where="config key languages", remedy=remedy)
        scripts += SCRIPTS.get(language, [])
    for script in further:
        if not is_script(script):
            remedy = "use the name of a Unicode script, such as Cyrillic, Latin or Greek"
            raise UserError(f"no such script: {script}", where="config key init.scripts", remedy=remedy)
        scripts.append(script)
    return list(dict.fromkeys(scripts))


def characters_of(scripts: Iterable[str]) -> "regex.Pattern[str]":
    """Matches one character of these scripts, or of what all scripts share."""
    alternatives = [rf"\p{{Script={script}}}" for script in scripts]
    return regex.compile("|".join([*alternatives, COMMON]), regex.VERSION1)
