"""Settings of the data stage: sources, cleaning, decontamination, dev rows and mined negatives."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING

SIDES = ("symmetric", "asymmetric")
FORMATS = ("parquet", "jsonl", "json", "csv")
CONSTRUCTIONS = (
    "pairs",
    "triplets",
    "query_pos_neg",
    "title_text_summary",
    "chat",
    "nli",
    "paraphrase_groups",
)
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # construction -> roles needed, roles allowed beside
    "pairs": (("anchor", "positive"), ()),
    "triplets": (("anchor", "positive", "negative"), ()),
    "query_pos_neg": (("query", "pos", "neg"), ()),
    "title_text_summary": (("title", "text", "summary"), ()),
    "chat": (("text",), ()),
    "nli": (("premise", "hypothesis", "label"), ("group", "order")),
    "paraphrase_groups": (("group", "text"), ("order",)),
}
LABELS = ("entailment", "neutral", "contradiction", "not_entailment")


@dataclass
class CardCount:
    """What the model card says about a set, and why ours may differ from it."""

    pairs: int | None = None  # None: not a set of the card
    negatives: int | None = None  # counted in the card's negative total; None: not counted there
    rounded_to: int = 1  # the card shows this set in steps of so many rows
    expected: int | None = None  # what our construction gives where it is known to differ from the card
    difference: str | None = None  # the reason, in words


@dataclass
class HubFiles:
    """Files of a further data set that belong to the same source, with the same columns."""

    hub: str = MISSING
    revision: str = "main"
    files: list[str] = field(default_factory=list)


@dataclass
class SourceConfig:
    """One data set: where its rows are, and how pairs are made of them."""

    title: str = MISSING  # the set's name for people
    side: str = MISSING  # symmetric or asymmetric
    hub: str | None = None  # data set id on the Hub; its files may come from the mirror instead
    revision: str = "main"  # commit, tag or branch of `hub`
    files: list[str] = field(default_factory=list)  # paths inside `hub`, `*` allowed; tar members after `::`
    also: list[HubFiles] = field(default_factory=list)  # further data sets, read after `hub`
    path: str | None = None  # a local file, folder or pattern instead of `hub`
    local_only: bool = False  # never on the Hub: skipped with a ledger line where neither mirror nor path has it
    reader: str | None = None  # a reader class instead of files, as package.module.Class
    reader_options: dict[str, str] = field(default_factory=dict)  # given to the reader class
    format: str = "parquet"  # parquet, jsonl, json (one array) or csv; .gz and .tar.gz are seen by the name
    columns: dict[str, str] = field(default_factory=dict)  # role in the construction -> column
    columns_verified: bool = True  # False: nobody has seen the real columns yet
    where: dict[str, list[str]] = field(default_factory=dict)  # column -> values of the rows that are used
    nulls: str = "error"  # what a null text does: error, or drop where the upstream set is known to have them
    construction: str = "pairs"  # how rows become pairs
    labels: dict[str, str] = field(default_factory=dict)  # nli: the file's label -> the label's name
    scores: dict[str, float] = field(default_factory=dict)  # nli: labels kept as rows with this score
    scored_rows: bool = True  # false: leave these rows out
    pairs_per_group: str = "all"  # nli: all entailments of a premise, or one
    negative_label: str | None = "contradiction"  # nli: which hypotheses of the premise are negatives; null: none
    need_negative: bool = False  # nli: premises without a negative give no pair
    list_length: int | None = None  # query_pos_neg: positives and negatives a row must have, pairwise
    positives: str = "all"  # query_pos_neg: every positive of a row, or the first one
    negatives: str = "given"  # given, none, or mine
    max_negatives: int | None = None  # of those given, so many are kept, chosen by the seed
    negatives_as_rows: bool = False  # one row for each negative instead of one row with all
    prepend: dict[str, str] = field(default_factory=dict)  # role -> text put before it
    max_rows: int | None = None  # a sample of at most so many pairs
    repeat: int = field(default=1, metadata={"unit": False})  # passes over the set in one epoch of its side
    weight: float = field(default=1.0, metadata={"unit": False})  # sampling weight against the side's other sets
    min_script_share: float | None = None  # instead of the value under cleaning
    strip_markup: bool | None = None  # instead of the value under cleaning
    # an official validation split that no benchmark uses: paths inside `hub`, or local ones where there is none
    dev_files: list[str] = field(default_factory=list)
    # what `make plan` assumes before the rows are there: mean tokens of each kind of text that a role has
    tokens: dict[str, list[int]] = field(default_factory=dict, metadata={"unit": False, "result": False})
    licence: str = field(default="not stated", metadata={"unit": False})  # as its page says
    access: str = field(default="open", metadata={"unit": False})  # open, or what one must do to get it
    note: str | None = field(default=None, metadata={"unit": False})  # what a reader of the ledger should know
    card: CardCount = field(default_factory=CardCount, metadata={"unit": False})

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        choices = {
            "side": SIDES,
            "format": FORMATS,
            "nulls": ("error", "drop"),
            "construction": CONSTRUCTIONS,
            "pairs_per_group": ("all", "one"),
            "positives": ("all", "first"),
            "negatives": ("given", "none", "mine"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                yield name, f"must be one of {', '.join(allowed)}"
        if sum(place is not None for place in (self.hub, self.path, self.reader)) == 0:
            yield "hub", "one of hub, path and reader must say where the rows are"
        if self.hub and not self.path and not self.files:
            yield "files", "must name the files inside the data set"
        if self.dev_files and not self.hub and not self.path:
            yield "dev_files", "need hub or path: a reader gives training pairs alone"
        for name in ("max_rows", "max_negatives", "list_length", "repeat"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield name, "must be at least 1"
        if not (math.isfinite(self.weight) and self.weight > 0):
            yield "weight", "must be above 0"
        for role in self.tokens.keys() - {"anchor", "positive", "negative"}:
            yield "tokens", f"{role} is not one of anchor, positive, negative"
        yield from self._problems_of_roles()

    def _problems_of_roles(self) -> Iterator[tuple[str, str]]:
        needed, allowed = ROLES.get(self.construction, ((), ()))
        for role in self.columns.keys() - {*needed, *allowed}:
            yield "columns", f"{role} is no role of {self.construction} ({', '.join((*needed, *allowed))})"
        texts = ("anchor", "positive") if self.construction == "chat" else needed
        for role in self.prepend.keys() - set(texts):
            yield "prepend", f"{role} is no text of {self.construction} ({', '.join(texts)})"
        for role, column in [*self.columns.items(), *(("where", column) for column in self.where)]:
            if "*" in column and role != "negative":
                yield "columns", f"{role} must be one column, not {column}; only negatives take a pattern"
        if self.construction == "nli" and not self.labels:
            yield "labels", "must map the file's labels to entailment, neutral, contradiction, not_entailment"
        for label in {*self.labels.values(), *self.scores} - set(LABELS):
            yield "labels", f"{label} is not one of {', '.join(LABELS)}"

    @property
    def kept_scores(self) -> dict[str, float]:
        """Labels of the rows that are kept with a score beside the entailments."""
        return self.scores if self.scored_rows else {}

    def missing_roles(self) -> list[str]:
        """Roles of the construction without a configured column."""
        needed, _ = ROLES[self.construction]
        return [role for role in needed if not self.columns.get(role)]


@dataclass
class CleaningConfig:
    """What is mended in every text, and which pairs are dropped."""

    unicode: str = "NFC"  # NFC, NFKC or none
    strip_markup: bool = True  # tags, entities and literal control tokens such as </s>
    min_characters: int = 2  # of a text
    max_characters: int = 100_000  # of a text; a longer one drops the pair
    cut_characters: int | None = None  # texts are cut here instead; None: never
    script: str = "Cyrillic"  # Unicode script of the language; none: no test
    min_script_share: float = 0.4  # letters of that script among the letters of a text's beginning
    min_letters: int = 20  # texts with fewer letters pass the script test
    duplicates: str = "inside"  # drop exact duplicates inside a set, between the sets of a side, or never

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.unicode not in ("NFC", "NFKC", "none"):
            yield "unicode", "must be NFC, NFKC or none"
        if self.script != "none" and not _is_script(self.script):
            yield "script", f"must be none or the name of a Unicode script, such as Greek, not {self.script}"
        if self.duplicates not in ("inside", "between", "never"):
            yield "duplicates", "must be inside, between or never"
        if not 1 <= self.min_characters <= self.max_characters:
            yield "min_characters", "must lie between 1 and max_characters"
        if not 0 <= self.min_script_share <= 1:
            yield "min_script_share", "must lie between 0 and 1"


def _is_script(name: str) -> bool:
    import regex

    try:
        return bool(regex.compile(rf"\p{{Script={name}}}"))
    except regex.error:
        return False


@dataclass
class DecontaminationConfig:
    """Evaluation texts that must not be trained on."""

    mode: str = "remove"  # remove, report or off; held-out sets and bundled evaluation samples are always removed
    suites: list[str] = field(default_factory=list)  # suites of evaluation, such as card_30, rus_v1_1, encodechka
    near_duplicates: bool = False  # also texts whose MinHash says they are nearly an evaluation text
    threshold: float = 0.7  # for that: shared share of the two texts' character 5-grams

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.mode not in ("remove", "report", "off"):
            yield "mode", "must be remove, report or off"
        if not 0 < self.threshold <= 1:
            yield "threshold", "must lie above 0 and be at most 1"


@dataclass
class DevConfig:
    """Rows held out of training, for checkpoints and merge weights."""

    anchors: int = 200  # of a set, with all pairs they have; from official validation files or a seeded slice
    share: float = 0.1  # at most this share of a set's anchors

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.anchors < 0:
            yield "anchors", "must be at least 0"
        if not 0 <= self.share < 1:
            yield "share", "must be at least 0 and below 1"


@dataclass
class MiningConfig:
    """Hard negatives for sets with `negatives: mine`, by sentence-transformers' miner."""

    model: str | None = None  # folder or Hub id of the embedding model that mines
    revision: str | None = None  # of a Hub id
    negatives: int = 1  # for each pair
    range_min: int = 10  # the best candidates are skipped: likely unmarked answers
    range_max: int = 60  # candidates that are looked at
    relative_margin: float | None = 0.05  # a negative's score is at most (1 - this) of the positive's
    query_prompt: str | None = None
    passage_prompt: str | None = None
    batch_size: int = field(default=64, metadata={"result": False})

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.negatives < 1:
            yield "negatives", "must be at least 1"
        if not 0 <= self.range_min < self.range_max:
            yield "range_min", "must be at least 0 and below range_max"


@dataclass
class DataConfig:
    """A mixture: its sources by name, and what is done to all of them."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)  # sets that are trained on
    held_out: dict[str, SourceConfig] = field(default_factory=dict)  # sets that are never trained on
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    dev: DevConfig = field(default_factory=DevConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    on_bad_row: str = "error"  # error, or skip: bad rows are left out and counted in the ledger
    workers: int = field(default=2, metadata={"result": False})  # threads that clean batches

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.on_bad_row not in ("error", "skip"):
            yield "on_bad_row", "must be error or skip"
        for name in self.sources.keys() & self.held_out.keys():
            yield "held_out", f"{name} is also a training source"
        if self.mines and not self.mining.model:
            yield "mining", "negatives: mine needs data.mining.model"
        if self.workers < 1:
            yield "workers", "must be at least 1"

    @property
    def all_sources(self) -> dict[str, SourceConfig]:
        """Held-out and training sources by name."""
        return {**self.held_out, **self.sources}

    @property
    def checked_suites(self) -> list[str]:
        """The suites of evaluation whose texts are looked for in the pairs."""
        return [] if self.decontamination.mode == "off" else self.decontamination.suites

    @property
    def mines(self) -> bool:
        """Whether a set takes mined negatives."""
        return any(source.negatives == "mine" for source in self.sources.values())


def unit_settings(source: SourceConfig) -> dict[str, Any]:
    """The fields of a source that change its rows, by name."""
    values = asdict(source)
    return {item.name: values[item.name] for item in fields(source) if item.metadata.get("unit", True)}
