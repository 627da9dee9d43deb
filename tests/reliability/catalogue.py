"""What users get wrong, stage by stage, and what the error line must name."""

import tarfile
from dataclasses import dataclass

from tests.reliability import faults
from tests.reliability.faults import LINES, Plant, nothing

FEW = ("evaluation.suites=[held_out]", "evaluation.resamples=100")
UNSCORED = ("merging=fixed", "merging.weights={init: 0.2, symmetric: 0.3, asymmetric: 0.5}", "merging.compare=[]")
UNSCORED += ("merging.score=false",)


@dataclass(frozen=True)
class Case:
    """A fault, the stage that meets it, and what its error line must name."""

    stage: str
    named: str  # a pattern
    plant: Plant = nothing
    overrides: tuple[str, ...] = ()


def config(named: str, *overrides: str, plant: Plant = nothing) -> Case:
    return Case("report", named, plant, overrides)


def data(named: str, plant: Plant, *overrides: str) -> Case:
    return Case("data", named, plant, overrides)


CONFIG = {
    "an unknown key": config("nonsense", "nonsense=1"),
    "an unknown key of a source": config("config key data.sources.terra.nonsense", "data.sources.terra.nonsense=1"),
    "a set added without a file": config("data.sources.mine.*by a YAML file", "+data.sources.mine.path=rows.jsonl"),
    "a misspelt profile": config("profile/demoo", "profile=demoo"),
    "a misspelt choice": config("base/nonsense", "base=nonsense"),
    "a wrong type": config("config key seed", "seed=1.5"),
    "an impossible value of a part": config("config key launch.processes", "launch.processes=0"),
    "a mirror that does not exist": config(r"/no/such/folder.*\(config key mirror\)", "mirror=/no/such/folder"),
    "an override without a value": config("seed", "seed"),
    "null where a value is needed": config("config key seed", "seed=null"),
    "an unknown option": config("unrecognized arguments: --nonsense", "--nonsense"),
    "an interpolation without a target": config("'nonsense' not found", "seed=${nonsense}"),
    "an environment variable that is not set": config("NO_SUCH_VARIABLE", "run=${oc.env:NO_SUCH_VARIABLE}"),
    "a run that climbs out of its folder": config(r"'\.\.' must be a plain name.*config key run", "run=.."),
    "a base that climbs out of its folder": config("'../x'.*config key base.name", "base.name=../x"),
    "a suite that climbs out of its folder": config(
        "'../x'.*config key evaluation.suite", "+evaluation.suite={../x: {kind: samples}}"
    ),
    "runs where nothing can be written": config("/dev/null/runs", "runs=/dev/null/runs"),
    "a setting that is NaN": config("finite.*false_negative_margin", "training.symmetric.false_negative_margin=nan"),
    "a pattern where one column is meant": config("only negatives", "data.sources.gazeta.columns.title='t*'"),
    "a mixture with a tab": config(r"cannot start any token.*mine.yaml, line 2", plant=faults.mixture("a:\n\tb: 1")),
    "a mixture in another encoding": config("utf-8.*can't decode", plant=faults.mixture("title: кот".encode("cp1251"))),
    "a mixture that is a list": config("list is not a subclass", plant=faults.mixture("- a\n- b\n")),
    "a mixture with a key twice": config("duplicate key workers", plant=faults.mixture("workers: 1\nworkers: 2\n")),
    "a mixture with an unknown key": config("config key data.nonsense", plant=faults.mixture("nonsense: 1")),
    "a mixture that would run code": config(
        "python/object/apply:os.system", plant=faults.mixture("workers: !!python/object/apply:os.system ['exit 1']")
    ),
    "a mixture that includes itself": config("recursion", plant=faults.mixture("defaults: [mine]")),
    "a mixture that refers to itself": config("Recursive", plant=faults.mixture("workers: ${data.workers}")),
}

SOURCES = {
    "json nested without end": data(
        "nested too deeply.*row 10", faults.source("r.jsonl", LINES + b'{"q":' + b"[" * 200_000 + b"\n")
    ),
    "a json array nested without end": data(
        "nested too deeply.*r.json", faults.source("r.json", b'[{"q":' + b"[" * 200_000, format="json")
    ),
    "numbers of 5000 digits": data("5000 digits", faults.source("r.jsonl", b'{"q": ' + b"9" * 5000 + b', "a": "b"}\n')),
    "zeros in the middle": data("broken json.*row 10", faults.source("r.jsonl", LINES + bytes(100) + b"\n" + LINES)),
    "parquet texts that are not UTF-8": data(
        "Invalid UTF8.*r.parquet",
        faults.source("r.parquet", faults.parquet(q=faults.broken_utf8), format="parquet"),
    ),
    "a csv column twice": data(
        "2 columns are called q", faults.source("r.csv", "q,q,a\nвопрос,вопрос,ответ\n".encode(), format="csv")
    ),
    "a csv with only a header": data("the set is empty", faults.source("r.csv", b"q,a\n", format="csv")),
    "an empty folder": data("no such file.*data.sources.mine.path", faults.source("r", lambda path: path.mkdir())),
    "a reader that is no reader": data(
        "no reader os.system", faults.source("r", LINES, reader="os.system", reader_options={"command": "exit 1"})
    ),
    "an archive with a link out of it": data(
        r"no member \*.jsonl", faults.archived_source(("x.jsonl", tarfile.SYMTYPE, "/etc/hostname"))
    ),
    "an archive with a hard link out of it": data(
        r"no member \*.jsonl", faults.archived_source(("x.jsonl", tarfile.LNKTYPE, "/etc/hostname"))
    ),
    "an archive without the file": data(
        r"no member \*.jsonl", faults.archived_source(("x.txt", tarfile.REGTYPE, LINES))
    ),
    "a mirror without the set": Case("data", "the mirror has no its5Q/panorama", overrides=("mirror=/tmp",)),
}

INIT = {
    "no data": Case("init", "needs the artefact data, which is missing", faults.without("data")),
    "a base with a bit flipped": Case(
        "init", faults.DAMAGED, faults.edited("bases/tiny/model.safetensors", faults.one_bit)
    ),
    "pairs with a bit flipped": Case(
        "init", faults.DAMAGED, faults.edited("data/symmetric/terra.parquet", faults.one_bit)
    ),
    "data with a manifest of something else": Case(
        "init", "data, which is missing", faults.edited("data/manifest.json", lambda _: b"\xff\xfe")
    ),
    "a base with a score that is NaN": Case(
        "init", "can't read the tokenizer.*someone/model",
        faults.base_with("tokenizer.json", faults.vocabulary_with(9, ["x", float("nan")])),
    ),
    "a base with half a tokenizer": Case(
        "init", "can't read the tokenizer", faults.base_with("tokenizer.json", lambda content: content[:999])
    ),
    "a base with weights cut off": Case(
        "init", "can't be loaded.*someone/model", faults.base_with("model.safetensors", lambda content: content[:-9])
    ),
    "a base with NaN in its weights": Case(
        "init", "layer.0.output.dense.weight holds NaN.*someone/model",
        faults.base_with("model.safetensors", faults.number_at("layer.0.output.dense.weight", float("nan"))),
    ),
    "a base without a layer's weights": Case(
        "init", "the weights lack the tensor.*someone/model",
        faults.base_with("model.safetensors", faults.tensors_with(faults.without_layer)),
    ),
    "a base of an unknown architecture": Case(
        "init", "nonsense.*someone/model", faults.base_with("config.json", faults.json_with(model_type="nonsense"))
    ),
    "a base that wants its own code": Case(
        "init", "can't be loaded.*someone/model",
        faults.base_with("config.json", faults.json_with(model_type="mine", auto_map={"AutoConfig": "mine.Config"})),
    ),
    "a base that is a pickle with code": Case("init", "can't be loaded.*someone/model", faults.base_with_pickle),
    "a base without a width": Case("init", "no hidden_size", faults.base_with("config.json", lambda _: "{}")),
    "a corpus in another encoding": Case(
        "init", "not UTF-8.*corpus.txt, line 3", faults.corpus("дом\nлес\n".encode() + "река\n".encode("cp1251"))
    ),
    "a corpus without texts": Case("init", "a corpus has no texts", faults.corpus(b"\n")),
    "a missing corpus": Case("init", "ru: no such file.*corpus.txt.*corpora.ru.files", faults.corpus(None)),
    "a language without a corpus": Case(
        "init", "language kk has no corpus.*add a corpus with language: kk", faults.corpus(faults.LINES),
        ("languages=[ru,kk]",),
    ),
    "a vocabulary below the special tokens": Case(
        "init", "would drop special tokens", faults.corpus(faults.LINES), ("init.max_size=10",)
    ),
    "a base in a mirror that lacks it": Case(
        "init", "the mirror has no such model.*no/such",
        overrides=("base.kind=hub", "base.hub=no/such", "base.name=other"),
    ),
}  # fmt: skip

TRAINING = {
    "no init": Case("symmetric", "needs the artefact init, which is missing", faults.without("init")),
    "init with a bit flipped": Case(
        "symmetric", faults.DAMAGED, faults.edited("init/model.safetensors", faults.one_bit)
    ),
    "pairs cut off": Case(
        "asymmetric", faults.DAMAGED, faults.edited("data/asymmetric/gazeta.parquet", lambda content: content[:-4])
    ),
    "an attention that does not exist": Case("symmetric", "nonsense.*init", overrides=("base.attention=nonsense",)),
    "an argument that is no number": Case(
        "symmetric", "adam_beta1 must be a number", overrides=("+training.symmetric.arguments.adam_beta1=hello",)
    ),
}  # fmt: skip

MERGE = {
    "a missing side": Case(
        "merge", "needs the artefact symmetric, which is missing", faults.without("symmetric")
    ),
    "a side with a bit flipped": Case(
        "merge", faults.DAMAGED, faults.edited("symmetric/model/model.safetensors", faults.one_bit), UNSCORED
    ),
    "a side that failed": Case(
        "merge", "symmetric, which is failed",
        faults.edited("symmetric/manifest.json", lambda content: content.replace(b'"complete"', b'"failed"')),
    ),
}  # fmt: skip

HEADS = {
    "a merge with a bit flipped": Case(
        "heads", faults.DAMAGED, faults.edited("merge/model/model.safetensors", faults.one_bit)
    ),
    "a set that has no heads to fit": Case(
        "heads", "no set of this side is called paris", overrides=("++training.heads.sets={paris:{weight:2}}",)
    ),
}

EVALUATION = {
    "held-out pairs with a bit flipped": Case(
        "evaluate", faults.DAMAGED, faults.edited("data/heldout/panorama.parquet", faults.one_bit), FEW
    ),
    "a missing folder": Case(
        "evaluate", "no such model folder.*/nowhere", overrides=(*FEW, "evaluation.models=[/nowhere]")
    ),
    "a folder without weights": Case("evaluate", "holds no weights.*empty", faults.model_without_files, FEW),
    "a Hub id that can't be reached": Case(
        "evaluate", "can't be reached|not in the local cache", overrides=(*FEW, "evaluation.models=[nobody/nothing]")
    ),
    "no model at all": Case("evaluate", "no model to score", overrides=(*FEW, "evaluation.chain=[]")),
    "an unknown task": Case(
        "evaluate", "no chosen suite has the task nope.*choose among", overrides=(*FEW, "evaluation.tasks=[nope]")
    ),
    "a missing device": Case(
        "evaluate", "can't be loaded.*init",
        overrides=(*FEW, "evaluation.chain=[init]", "evaluation.devices=[cuda:9]"),
    ),
    "a model with NaN in an unused row": Case(
        "evaluate", "word_embeddings.weight holds NaN.*mine",
        faults.model_with("model.safetensors", faults.number_at("word_embeddings.weight", float("nan"))), FEW,
    ),
    "a model with its own code": Case(
        "evaluate", "mine.Code.*third-party code",
        faults.model_with("modules.json", lambda content: content.replace(b"sentence_transformers.models.Pooling",
                                                                          b"mine.Code")), FEW,
    ),
    "a model with half a config": Case(
        "evaluate", "can't be loaded.*mine", faults.model_with("config.json", lambda content: content[:99]), FEW
    ),
    "a model with invalid prompts": Case(
        "evaluate", "can't be loaded.*mine", faults.model_with("config_sentence_transformers.json", lambda _: "[]"), FEW
    ),
    "a model with more tokens than positions": Case(
        "evaluate", "100000 tokens.*mine",
        faults.model_with("sentence_bert_config.json", lambda _: '{"max_seq_length": 100000}'), FEW,
    ),
    "a folder without encodechka's files": Case(
        "evaluate", "encodechka's data file .* is missing",
        overrides=("evaluation.suites=[encodechka]", "evaluation.chain=[init]", "evaluation.encodechka=/tmp"),
    ),
}  # fmt: skip

REPORT = {
    "a ledger with a letter changed": Case("report", faults.DAMAGED, faults.edited("data/ledger.json", faults.one_bit)),
    "scores cut off": Case(
        "report", faults.DAMAGED, faults.edited("evaluate/scores.csv", lambda content: content[:99])
    ),
    "weights of another encoding": Case(
        "report", faults.DAMAGED, faults.edited("merge/weights.json", lambda content: content.decode().encode("utf-16"))
    ),
}

CATALOGUE = CONFIG | SOURCES | INIT | TRAINING | MERGE | HEADS | EVALUATION | REPORT
