"""Which script a language is written in, and which characters belong to a script."""

from collections.abc import Iterable, Sequence

import regex

from pipeline.core.errors import UserError

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
# Digits, punctuation and symbols that belong to no script, and the marks that combine with any.
COMMON = r"[[\p{N}\p{P}\p{S}]&&\p{Script=Common}]|\p{Script=Inherited}"


def scripts_of(languages: Iterable[str], further: Iterable[str] = ()) -> list[str]:
    """The scripts of the languages and further ones, each once; raises UserError for what is not known."""
    scripts: list[str] = []
    for language in languages:
        if language not in SCRIPTS and not further:
            where, remedy = "config key languages", "name its Unicode script under init.scripts, such as [Greek]"
            raise UserError(f"the script of language {language} is not known", where=where, remedy=remedy)
        scripts += SCRIPTS.get(language, [])
    for script in further:
        try:
            regex.compile(rf"\p{{Script={script}}}")
        except regex.error:
            remedy = "use the name of a Unicode script, such as Cyrillic, Latin or Greek"
            raise UserError(f"no such script: {script}", where="config key init.scripts", remedy=remedy) from None
        scripts.append(script)
    return list(dict.fromkeys(scripts))


def characters_of(scripts: Iterable[str]) -> "regex.Pattern[str]":
    """Matches one character of these scripts, or of what all scripts share."""
    alternatives = [rf"\p{{Script={script}}}" for script in scripts]
    return regex.compile("|".join([*alternatives, COMMON]), regex.VERSION1)


def language_scripts(languages: list[str], further: Sequence[str] = ()) -> dict[str, str]:
    """The main script of each language, by which the words of mixed corpora are told apart.

    A language that is not known is taken to be written in the first of the further scripts.
    """
    return {language: scripts_of([language], further)[0] for language in languages}
