"""The peer of the data benchmark: the same sets, cleaning and pairs with `datasets` and Python row by row."""

import html
import html.entities
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, load_dataset

from data.pairs.cleaning import CONTROL_TOKENS, ENTITY, SCRIPT_CHARACTERS, TAGS

PYTHON_TAGS = re.compile(TAGS)
PYTHON_TOKENS = re.compile(CONTROL_TOKENS)
REFERENCE = re.compile(ENTITY)
LINE_ENDS = re.compile("[\u000b\u000c\u0085\u2028\u2029]")
GAPS = re.compile("[\u0000-\u0008\u000e-\u001f\u007f-\u009f\u200b]")
INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u2060\ufeff\ufffd]")
SPACES, BREAKS = re.compile(r"[^\S\n]+"), re.compile(r"\s*\n\s*")
CYRILLIC, LETTERS = re.compile("[\u0400-\u052f]"), re.compile(r"[^\W\d_]")
NOT_WORD = re.compile(r"[\W_]+")
WORKERS = 2

Rows = dict[str, list[Any]]


def normalised(text: str | None) -> str:
    """One text, cleaned as by the data stage."""
    if not text:
        return ""
    if "<" in text:
        text = PYTHON_TAGS.sub(" ", text)
    if "&" in text:
        text = REFERENCE.sub(lambda found: character(found[0]), text)
    if "<" in text:
        text = PYTHON_TOKENS.sub(" ", text)
    text = INVISIBLE.sub("", GAPS.sub(" ", LINE_ENDS.sub("\n", text)))
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return BREAKS.sub("\n", SPACES.sub(" ", text)).strip()


def character(reference: str) -> str:
    """A reference that ends in a semicolon, decoded; unknown ones unchanged."""
    return html.unescape(reference) if reference[1] == "#" or reference[1:] in html.entities.html5 else reference


def comparable(text: str) -> str:
    """Letters and digits only, in lower case."""
    return NOT_WORD.sub(" ", text.lower().replace("ё", "е")).strip()


def identity(text: str) -> str:
    """The key that texts are compared by: their comparable form, or the text itself where that is empty."""
    return comparable(text) or text


def other_script(text: str) -> bool:
    """Whether too few of the first letters are Cyrillic."""
    letters = len(LETTERS.findall(text[:SCRIPT_CHARACTERS]))
    return letters >= 20 and len(CYRILLIC.findall(text[:SCRIPT_CHARACTERS])) < 0.4 * letters


def is_kept(anchor: str, positive: str) -> bool:
    """Whether a pair passes the cleaning's tests."""
    lengths = sorted([len(anchor), len(positive)])
    if lengths[0] < 2 or lengths[1] > 100_000 or other_script(anchor) or other_script(positive):
        return False
    likely = lengths[1] - lengths[0] <= lengths[0] // 4 + 16
    return not (likely and identity(anchor) == identity(positive))


def clean(rows: Rows) -> Rows:
    """A batch of pairs with normalised texts and without wrong negatives."""
    anchors, positives = [list(map(normalised, rows[name])) for name in ("anchor", "positive")]
    negatives = []
    for anchor, positive, texts in zip(anchors, positives, rows["negatives"], strict=True):
        wrong = {identity(anchor), identity(positive)} if texts else set()
        cleaned = map(normalised, texts)
        negatives.append([text for text in cleaned if len(text) >= 2 and identity(text[:1000]) not in wrong])
    return {"anchor": anchors, "positive": positives, "negatives": negatives}


def keep(rows: Rows) -> list[bool]:
    """Which rows of a batch pass."""
    return [is_kept(anchor, positive) for anchor, positive in zip(rows["anchor"], rows["positive"], strict=True)]


def prepare_all(mirror: Path, folder: Path) -> dict[str, Any]:
    """Every set to parquet below `folder`; returns raw rows and pairs built by set."""
    datasets.disable_progress_bars()
    raw, built = 0, {}
    for name, (kind, files, make) in SETS.items():
        paths = [str(mirror / file) for file in files]
        loaded = load_dataset(kind, data_files=paths, split="train", cache_dir=str(folder / "cache"))
        raw += len(loaded)
        pairs = make(loaded)
        built[name] = len(pairs)
        pairs = pairs.map(clean, batched=True, num_proc=WORKERS).filter(keep, batched=True, num_proc=WORKERS)
        without_duplicates(pairs).to_parquet(str(folder / f"{name}.parquet"))
    return {"rows": raw, "built": built}


def without_duplicates(pairs: Dataset) -> Dataset:
    """The first of equal (anchor, positive, first negative)."""
    seen: set[int] = set()

    def new(rows: Rows) -> list[bool]:
        answers = []
        for anchor, positive, negatives in zip(rows["anchor"], rows["positive"], rows["negatives"], strict=True):
            key = hash((anchor, positive, negatives[0] if len(negatives) == 1 else ""))
            answers.append(key not in seen)
            seen.add(key)
        return answers

    return pairs.filter(new, batched=True)


def mapped(function: Callable[[Rows], Rows]) -> Callable[[Dataset], Dataset]:
    """A construction that works on batches of rows."""
    return lambda rows: rows.map(function, batched=True, num_proc=WORKERS, remove_columns=rows.column_names)


def two(anchor: str, positive: str) -> Callable[[Dataset], Dataset]:
    """(anchor, positive) of two columns."""

    def construct(rows: Rows) -> Rows:
        return {"anchor": rows[anchor], "positive": rows[positive], "negatives": [[] for _ in rows[anchor]]}

    return mapped(construct)


def article(rows: Rows) -> Rows:
    """(title, text) and (title, summary)."""
    made: Rows = {"anchor": [], "positive": [], "negatives": []}
    for title, text, summary in zip(rows["title"], rows["text"], rows["summary"], strict=True):
        made["anchor"] += [title, title]
        made["positive"] += [text, summary]
        made["negatives"] += [[], []]
    return made


def triplets(most: int | None) -> Callable[[Rows], Rows]:
    """The row's negatives: one row for each, or the first `most` with their pair."""

    def construct(rows: Rows) -> Rows:
        names = [name for name in rows if name.startswith("negative")]
        made: Rows = {"anchor": [], "positive": [], "negatives": []}
        for position, (anchor, positive) in enumerate(zip(rows["anchor"], rows["positive"], strict=True)):
            negatives = [rows[name][position] for name in names]
            lists = [[negative] for negative in negatives] if most is None else [negatives[:most]]
            made["anchor"] += [anchor] * len(lists)
            made["positive"] += [positive] * len(lists)
            made["negatives"] += lists
        return made

    return construct


def parallel(rows: Rows) -> Rows:
    """(query, pos[i], neg[i])."""
    made: Rows = {"anchor": [], "positive": [], "negatives": []}
    for query, positives, negatives in zip(rows["query"], rows["pos"], rows["neg"], strict=True):
        made["anchor"] += [query] * len(positives)
        made["positive"] += positives
        made["negatives"] += [[negative] for negative in negatives]
    return made


def nli(premise: str, hypothesis: str, label: str, **how: Any) -> Callable[[Dataset], Dataset]:
    """Entailments by premise."""
    return lambda rows: Dataset.from_generator(lambda: _entailments(rows, premise, hypothesis, label, **how))


def _entailments(
    rows: Dataset,
    premise: str,
    hypothesis: str,
    label: str,
    *,
    entailment: Any = "entailment",
    group: str | None = None,
    one: bool = False,
    with_negative: bool = False,
    need_negative: bool = False,
    sources: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    positives: dict[str, list[tuple[str, str]]] = defaultdict(list)
    negatives: dict[str, list[str]] = defaultdict(list)
    for line in rows:
        if sources and line["source"] not in sources:
            continue
        key = line[group or premise]
        if line[label] == entailment:
            positives[key].append((line[premise], line[hypothesis]))
        elif line[label] == "contradiction":
            negatives[key].append(line[hypothesis])
    for key, found in positives.items():
        others = negatives[key] if with_negative else []
        if need_negative and not others:
            continue
        for number, (anchor, positive) in enumerate(found[:1] if one else found):
            chosen = [others[number % len(others)]] if others else []
            yield {"anchor": anchor, "positive": positive, "negatives": chosen}


def first_two(rows: Dataset) -> Dataset:
    """The first two different sentences of each paraphrase set."""

    def pairs() -> Iterator[dict[str, Any]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for line in sorted(rows, key=lambda line: int(line["sentence_id"])):
            if line["paraphrase"] not in groups[line["paraphrase_set_id"]]:
                groups[line["paraphrase_set_id"]].append(line["paraphrase"])
        for group in groups.values():
            if len(group) > 1:
                yield {"anchor": group[0], "positive": group[1], "negatives": []}

    return Dataset.from_generator(pairs)


ENGLISH = ("snli", "mnli", "anli_r1", "anli_r2", "anli_r3")
GLUE = "RussianNLP/russian_super_glue"
SETS: dict[str, tuple[str, list[str], Callable[[Dataset], Dataset]]] = {
    "allnli": (
        "parquet",
        ["cointegrated/nli-rus-translated-v2021/data/train-00000-of-00001.parquet"],
        nli(
            "premise_ru",
            "hypothesis_ru",
            "label",
            group="premise",
            one=True,
            with_negative=True,
            need_negative=True,
            sources=ENGLISH,
        ),
    ),
    "mednli": (
        "json",
        ["physionet/rumednli/ru_mli_train_v1.jsonl"],
        nli("ru_sentence1", "ru_sentence2", "gold_label", one=True),
    ),
    "rcb": ("parquet", [f"{GLUE}/rcb/train/0000.parquet"], nli("premise", "hypothesis", "label", entailment=0)),
    "terra": ("parquet", [f"{GLUE}/terra/train/0000.parquet"], nli("premise", "hypothesis", "label", entailment=0)),
    "tapaco": ("parquet", ["community-datasets/tapaco/ru/train-00000-of-00001.parquet"], first_two),
    "ru_wanli": (
        "parquet",
        ["deepvk/ru-WANLI/data/train.parquet"],
        nli("premise", "hypothesis", "label", with_negative=True),
    ),
    "ru_hnp": ("parquet", ["deepvk/ru-HNP/train.parquet"], mapped(parallel)),
    "miracl": (
        "parquet",
        ["sentence-transformers/miracl/ru-triplet-100/train-00000-of-00001.parquet"],
        mapped(triplets(1)),
    ),
    "mldr": ("parquet", ["sentence-transformers/mldr/ru-triplet/train-00000-of-00001.parquet"], mapped(triplets(1))),
    "lenta": ("parquet", ["zloelias/lenta-ru/data/train-00000-of-00001.parquet"], two("title", "text")),
    "mlsum": ("parquet", ["mteb/mlsum/ru/train-00000-of-00001.parquet"], mapped(article)),
    "mr_tydi": (
        "parquet",
        ["sentence-transformers/mr-tydi/ru-triplet-100/train-00000-of-00001.parquet"],
        mapped(triplets(None)),
    ),
    "panorama": ("json", ["its5Q/panorama/panorama.jsonl"], two("title", "body")),
    "pravo_israel": ("json", ["TarasHu/pravoIsrael/pravoIsrael.json"], two("question", "answer")),
    "xlsum": ("parquet", ["csebuetnlp/xlsum/russian/train/0000.parquet"], mapped(article)),
    "fialka": ("parquet", ["0x7o/fialka-v1/data/train-00000-of-00001.parquet"], two("prompt", "answer")),
    "russian_keywords": ("csv", ["Milana/russian_keywords/russian_keywords_dataset.csv"], two("keywords", "text")),
    "gazeta": ("json", ["IlyaGusev/gazeta/gazeta_train.jsonl"], mapped(article)),
    "gsm8k_ru": ("parquet", ["d0rj/gsm8k-ru/data/train-00000-of-00001.parquet"], two("question", "answer")),
    "dsum_ru": (
        "parquet",
        [f"d0rj/{part}/data/train-00000-of-00001.parquet" for part in ("dialogsum-ru", "samsum-ru")],
        two("summary", "dialogue"),
    ),
    "summ_dialog_news": (
        "parquet",
        ["CarlBrendt/Summ_Dialog_News/data/train-00000-of-00001.parquet"],
        two("summary", "info"),
    ),
}
