"""Settings of the data stage: sources, cleaning, decontamination, dev rows and mined negatives."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import regex
from omegaconf import MISSING

from configs.schema.rules import setting

OWN_MODELS = ("base", "init")  # of the run, which may mine, guide or teach
DATA_SIDES = ("symmetric", "asymmetric")
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # construction -> required roles, optional roles
    "pairs": (("anchor", "positive"), ()),
    "triplets": (("anchor", "positive"), ("negative",)),
    "query_pos_neg": (("query", "pos"), ("neg",)),
    "scored_pairs": (("anchor", "positive", "score"), ()),
    "title_text_summary": (("title", "text", "summary"), ()),
    "chat": (("text",), ()),
    "nli": (("premise", "hypothesis", "label"), ("group", "order")),
    "paraphrase_groups": (("group", "text"), ("order",)),
}
NEGATIVE_ROLES = ("negative", "neg")  # may be missing in a file, a row or a list
NO_TEXTS = ("label", "group", "order", "score")
LABELS = ("entailment", "neutral", "contradiction", "not_entailment")


@dataclass
class CardCount:
    """The model card's figures for a set, and why ours may differ."""

    pairs: int | None = None  # None: not a set of the card
    negatives: int | None = None  # counted in the card's negative total; None: not counted there
    rounded_to: int = setting(1, least=1)  # the card rounds this set to multiples of this number
    expected: int | None = None  # our construction's count if known to differ from the card
    difference: str | None = None  # the reason, in words


@dataclass
class HubFiles:
    """Files of a further data set that belong to the same source, with the same columns."""

    hub: str = MISSING  # data set id on the Hub
    revision: str = "main"  # commit, tag or branch of `hub`
    files: list[str] = setting([])  # paths inside `hub`, `*` allowed


@dataclass
class SourceConfig:
    """One data set: where its rows are, and how pairs are made from them."""

    title: str = MISSING  # the set's name in tables and the card
    # symmetric: texts of one kind, such as paraphrases; asymmetric: a query and its answer.
    side: str = setting(MISSING, choices=DATA_SIDES)
    hub: str | None = None  # data set id on the Hub; its files may come from the mirror instead
    revision: str = "main"  # commit, tag or branch of `hub`
    files: list[str] = setting([])  # paths inside `hub`, `*` allowed; tar members after `::`
    also: list[HubFiles] = setting([])  # further data sets, read after `hub`
    path: str | None = None  # a local file, folder or pattern instead of `hub`
    local_only: bool = False  # not on the Hub: skipped with a ledger line if neither mirror nor path has it
    reader: str | None = None  # a reader class instead of files, as package.module.Class
    reader_options: dict[str, str] = setting({})  # arguments of the reader class
    # json: one document of up to 1 GB, an array of rows or an object containing it. .gz and .tar.gz are recognised by
    # the name.
    format: str = setting("parquet", choices=("parquet", "jsonl", "json", "csv"))
    encoding: str = "utf-8"  # of jsonl, json and csv, by its name in Python, such as cp1251
    delimiter: str = ","  # csv: one character, or tab
    # csv: fields may be quoted with "; false: it is an ordinary character, as in many tab-separated files.
    quotes: bool = True
    columns: dict[str, str] = setting({})  # role in the construction -> column
    columns_verified: bool = True  # False: the real columns have not been inspected
    where: dict[str, list[str]] = setting({})  # column -> values of the rows to use
    # Null texts: an error, or dropped, for sets known to have them.
    nulls: str = setting("error", choices=("error", "drop"))
    construction: str = setting("pairs", choices=ROLES)  # how rows become pairs
    labels: dict[str, str] = setting({}, choices=LABELS)  # nli: the file's label -> the label's name
    # nli: labels other than entailment to keep as rows with this score; entailments have 1
    scores: dict[str, float] = setting({}, keys=LABELS[1:], least=0, below=1)
    # scored_pairs: lowest and highest possible score, mapped to 0 and 1; the contrastive loss takes rows with 1.
    score_range: list[float] | None = None
    scored_rows: bool = True  # false: leave out the rows that `scores` or `score_range` add to the positives
    pairs_per_group: str = setting("all", choices=("all", "one"))  # nli: all entailments of a premise, or one
    # nli: the label of the premise's hypotheses that are negatives; null: none.
    negative_label: str | None = setting("contradiction", choices=LABELS)
    need_negative: bool = False  # nli: skip premises without a negative
    # query_pos_neg: positives a row must have, and as many negatives, paired with them, if it has any.
    list_length: int | None = setting(None, least=1)
    # query_pos_neg: every positive of a row, or the first one.
    positives: str = setting("all", choices=("all", "first"))
    # The rows' own, none, or mined ones as set by data.mining.
    negatives: str = setting("given", choices=("given", "none", "mine"))
    max_negatives: int | None = setting(None, least=1)  # most given negatives to keep, chosen by the seed
    negatives_as_rows: bool = False  # one row per negative instead of one row with all
    # [from, to) within 0 to 1: only pairs whose anchor falls there, by a hash of its text that ignores the seed.
    slice: list[float] = setting([], least=0, most=1)
    dev_anchors: int | None = setting(None, least=0)  # held out of training, instead of dev.anchors
    max_rows: int | None = setting(None, least=1)  # a sample of at most this many pairs
    repeat: int = setting(1, least=1, unit=False)  # passes over the set in one epoch of its side
    weight: float = setting(1.0, above=0, unit=False)  # sampling weight relative to the side's other sets
    min_script_share: float | None = setting(None, least=0, most=1)  # instead of cleaning.min_script_share
    strip_markup: bool | None = None  # instead of cleaning.strip_markup
    # an official validation split that no benchmark uses: paths inside `hub`, or local ones without `hub`
    dev_files: list[str] = setting([])
    # what `make plan` assumes before the rows exist: mean tokens of each kind of text of a role
    tokens: dict[str, list[int]] = setting({}, keys=("anchor", "positive", "negative"), unit=False, result=False)
    # ... and the number of distinct anchors, if pairs share them
    anchors: int | None = setting(None, least=1, unit=False, result=False)
    licence: str = setting("not stated", unit=False)  # as stated on its page
    access: str = setting("open", unit=False)  # open, or how to get it
    note: str | None = setting(None, unit=False)  # a remark for the ledger
    card: CardCount = field(default_factory=CardCount, metadata={"unit": False})

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.hub is None and self.path is None and self.reader is None:
            yield "hub", "one of hub, path and reader must be set"
        if self.hub and not self.path and not self.files:
            yield "files", "must name the files inside the data set"
        if self.dev_files and not self.hub and not self.path:
            yield "dev_files", "need hub or path: a reader only gives training pairs"
        if self.slice and (len(self.slice) != 2 or self.slice[0] >= self.slice[1]):
            yield "slice", "must be two numbers, the first below the second, such as [0, 0.1]"
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:
            yield "encoding", f"must be one that Python knows, such as utf-8 or cp1251: {error}"
        if len(self.separator) != 1 or self.separator in '"\r\n':
            yield "delimiter", f"must be one character or tab, not {self.delimiter!r}"
        yield from self._problems_of_roles()

    def _problems_of_roles(self) -> Iterator[tuple[str, str]]:
        roles = [role for kind in ROLES[self.construction] for role in kind]
        for role in self.columns.keys() - set(roles):
            yield "columns", f"{role} is not a role of {self.construction} ({', '.join(roles)})"
        for role, column in [*self.columns.items(), *(("where", column) for column in self.where)]:
            if "*" in column and role != "negative":
                yield "columns", f"{role} must be one column, not {column}; only negatives take a pattern"
        if self.construction == "nli" and not self.labels:
            yield "labels", f"must map the file's labels to {', '.join(LABELS)}"
        if self.construction == "nli" and self.need_negative and self.negative_label is None:
            yield "need_negative", "needs negative_label: without it no premise has a negative"
        if self.construction == "scored_pairs":
            bounds = self.score_range or []
            if len(bounds) != 2 or bounds[0] >= bounds[1]:
                yield "score_range", "must be the lowest and the highest possible score in the file, such as [1, 5]"
        if self.reader and self.construction != "pairs":
            yield "construction", f"must be pairs for a reader, not {self.construction}"

    @property
    def separator(self) -> str:
        """The character between two fields of csv."""
        return {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)

    @property
    def has_scores(self) -> bool:
        """Whether the set's rows carry a score."""
        return self.scored_rows and (self.construction == "scored_pairs" or bool(self.scores))

    @property
    def kept_scores(self) -> dict[str, float]:
        """Labels of the rows that are kept with a score in addition to the entailments."""
        return self.scores if self.scored_rows else {}


@dataclass
class CleaningConfig:
    """How texts are cleaned, and which pairs are dropped."""

    unicode: str = setting("NFC", choices=("NFC", "NFKC", "none"))  # normalisation form
    strip_markup: bool = True  # tags, entities and literal control tokens such as </s>
    min_characters: int = setting(2, least=1)  # of a text
    max_characters: int = 100_000  # of a text; a longer one drops the pair
    script: str = "Cyrillic"  # Unicode script of the language; none: not checked
    # Share of that script among the letters at a text's beginning.
    min_script_share: float = setting(0.4, least=0, most=1)
    # Drop exact duplicates inside a set, between the sets of a side, or never.
    duplicates: str = setting("inside", choices=("inside", "between", "never"))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.script != "none" and not is_script(self.script):
            yield "script", f"must be none or the name of a Unicode script, such as Greek, not {self.script}"
        if self.min_characters > self.max_characters:
            yield "min_characters", f"must be at most max_characters ({self.max_characters})"


def is_script(name: str) -> bool:
    """Whether Unicode has a script of this name."""
    try:
        return bool(regex.compile(rf"\p{{Script={name}}}"))
    except regex.error:
        return False


@dataclass
class DecontaminationConfig:
    """Evaluation texts that must not be trained on."""

    # Held-out sets and bundled evaluation samples are always removed.
    mode: str = setting("remove", choices=("remove", "report", "off"))
    suites: list[str] = setting([])  # evaluation suites, such as card_30, rus_v1_1, encodechka
    near_duplicates: bool = False  # also near-duplicates of them, by MinHash
    threshold: float = setting(0.7, above=0, most=1)  # for that: share of character 5-grams in common


@dataclass
class DevConfig:
    """Rows held out of training, for checkpoints and merge weights."""

    # Number per set, with all their pairs; from official validation files or a seeded slice.
    anchors: int = setting(200, least=0)
    share: float = setting(0.1, least=0, below=1)  # at most this share of a set's anchors


@dataclass
class MiningConfig:
    """Hard negatives for sets with `negatives: mine`, from the positives of the same set."""

    # The mining model: base or init, this run's own; else a folder or a Hub id.
    model: str = "base"
    revision: str | None = None  # of a Hub id
    negatives: int = setting(1, least=1)  # per pair
    range_min: int = setting(3, least=0)  # the number of nearest passages to skip: likely unlabelled answers
    range_max: int = setting(100, least=1)  # the number of nearest passages considered
    # Passages more similar than the positive minus this are skipped too, in standard deviations of the anchor's cosines
    # with all passages; null: none are.
    margin: float | None = setting(0.5, least=0)
    max_length: int | None = setting(None, least=4)  # tokens at which texts are truncated; null: as on the set's side
    query_prompt: str | None = None  # prefix of anchors; null: the model's own
    passage_prompt: str | None = None  # prefix of passages; null: the model's own

    @property
    def wanted(self) -> str:
        """The mining model; a Hub id with its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.range_min >= self.range_max:
            yield "range_min", f"must be below range_max ({self.range_max})"
        elif self.negatives > (most := self.range_max - self.range_min):
            yield "negatives", f"must be at most range_max - range_min ({most}), the number of candidates"


@dataclass
class DataConfig:
    """A mixture: its sources by name, and what is done to all of them."""

    sources: dict[str, SourceConfig] = setting({})  # training sets
    held_out: dict[str, SourceConfig] = setting({})  # sets never used for training
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    dev: DevConfig = field(default_factory=DevConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    on_bad_row: str = setting("error", choices=("error", "skip"))  # skip: leave out and count in the ledger
    workers: int = setting(2, least=1, result=False)  # threads that clean batches
    folder: str | None = setting(None, result=False)  # of data sets, for mixtures whose sources' paths use it

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.sources.keys() & self.held_out.keys():
            yield "held_out", f"{name} is also a training source"
        for name in self.sources.keys() & {"dev", *(f"heldout-{name}" for name in self.held_out)}:
            yield "sources", f"{name} is a name for the pipeline's own files; give the set another one"

    @property
    def all_sources(self) -> dict[str, SourceConfig]:
        """Held-out and training sources by name."""
        return {**self.held_out, **self.sources}

    def key(self, name: str) -> str:
        """The config key of a set's settings."""
        return f"data.{'held_out' if name in self.held_out else 'sources'}.{name}"

    @property
    def checked_suites(self) -> list[str]:
        """The evaluation suites whose texts are searched for in the pairs."""
        return [] if self.decontamination.mode == "off" else self.decontamination.suites

    @property
    def mines(self) -> bool:
        """Whether a set uses mined negatives."""
        return any(source.negatives == "mine" for source in self.sources.values())


def set_name(key: str) -> str:
    """The set's name in a `DataConfig.key`."""
    return key.rpartition(".")[2]
