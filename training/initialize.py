"""The stage `init`: the base model with a smaller vocabulary, and a certificate of what stays the same."""

from pathlib import Path
from typing import Any

from pipeline.artefact import file_sha256, write_json
from pipeline.config import Config
from pipeline.console import log
from pipeline.revisions import Revision, locked_commit
from pipeline.stage import Stage, StageFolder, application
from training.bases.stage import ensure_base, scratch_folder
from training.vocabulary.corpora import find_corpora, local_files


def inputs(config: Config) -> dict[str, Path | str]:
    """The base, the prepared pairs where they are counted, and the contents of local files."""
    found: dict[str, Path | str] = {"base": config.base_folder}
    if any(corpus.kind == "pairs" for corpus in config.init.corpora.values()):
        found["data"] = config.folder("data")
    files = local_files("certify", config.init.certify)
    for name, corpus in config.init.corpora.items():
        if corpus.kind == "text":
            files += local_files(name, corpus.files)
        elif corpus.kind == "hub" and config.mirror:
            files += local_files(name, [str(Path(config.mirror) / str(corpus.hub) / file) for file in corpus.files])
    hub = [corpus for corpus in config.init.corpora.values() if corpus.kind == "hub" and not config.mirror]
    for corpus in hub:
        if commit := locked_commit(Revision("dataset", str(corpus.hub), corpus.revision)):
            found[f"lock:{corpus.hub}"] = commit
    return found | {f"file:{path}": file_sha256(path) for path in files}


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Count, select, shrink, certify."""
    import numpy as np
    from tokenizers import Tokenizer

    from training.vocabulary import certificate as certificates
    from training.vocabulary.comparison import Comparison
    from training.vocabulary.id_map import write_id_map
    from training.vocabulary.language_counts import count_pieces
    from training.vocabulary.selection import select
    from training.vocabulary.shrinking import shrink
    from training.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer

    base = stage.input("base")
    tokenizer = TokenizerFile.read(base / "tokenizer.json")
    before = read_tokenizer(base / "tokenizer.json")
    corpora = find_corpora(config.init, config.languages, config.folder("data"), config.mirror)
    counts = count_pieces(corpora, before, config.languages, tokenizer.size, config.init.scripts)
    prompts = before.encode_batch([prompt for prompt in config.base.prompts.values() if prompt])
    needed = np.unique(np.array([token for prompt in prompts for token in prompt.ids], dtype=np.int64))
    selection = select(tokenizer, counts.occurrences, config.init, config.languages, needed)

    with scratch_folder(stage) as scratch:
        (scratch / "vocabulary").mkdir()
        sizes = shrink(base, scratch, tokenizer, selection.kept)
        if sizes.padding_rows_dropped:
            log.info("dropped %d embedding rows that no id reaches", sizes.padding_rows_dropped)
        write_id_map(scratch / "vocabulary/id_map.parquet", tokenizer, selection.kept, counts.occurrences)

        after = Tokenizer.from_file(str(scratch / "tokenizer.json"))
        new_ids = certificates.successors(selection.kept, tokenizer.size)
        comparison = Comparison(before, after, new_ids, tokenizer.unknown_id)
        examples = -(-config.init.hidden_state_texts // len(corpora))
        further = [Path(path) for path in local_files("certify", config.init.certify)]
        agreements = certificates.certify(
            corpora, further, comparison, config.init.certified_texts, counts.texts, examples
        )
        shares = certificates.language_shares(counts.occurrences, selection.kept)
        content = certificates.certificate(tokenizer, selection, sizes, shares, agreements, corpora, counts.texts)
        states = certificates.hidden_state_part(
            base, scratch, agreements, config.init.hidden_state_texts, config.base.max_length
        )
        write_json(scratch / "certificate.json", content | {"hidden_states": states})
    return metrics(content)


def metrics(content: dict[str, Any]) -> dict[str, Any]:
    """What the manifest and the closing table say."""
    checked = content["checked"].values()
    return {
        "vocabulary before": content["vocabulary_before"],
        "vocabulary after": content["vocabulary_after"],
        "parameters before": content["parameters_before"],
        "parameters after": content["parameters_after"],
        "texts compared": sum(entry["compared"] for entry in checked),
        "texts covered": sum(entry["covered"] for entry in checked),
        "mismatches among covered texts": sum(entry["mismatches"] for entry in checked),
    }


INIT = Stage(
    name="init",
    version=1,
    settings=lambda config: {"init": config.init, "languages": config.languages},
    inputs=inputs,
    build=build,
)


def STAGE(config: Config) -> Stage:
    """The stage `init`, after its base has been made: the base is shared by runs and has an artefact of its own."""
    ensure_base(config)
    return INIT


main = application(STAGE)

if __name__ == "__main__":
    main()
