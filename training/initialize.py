"""The stage `init`: the base model with a smaller vocabulary, and a certificate of what stays the same."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder, write_json
from pipeline.core.console import log
from training.vocabulary import certificate as certificates
from training.vocabulary.comparison import Comparison
from training.vocabulary.corpora import find_corpora, local_files
from training.vocabulary.id_map import write_id_map
from training.vocabulary.language_counts import count_pieces
from training.vocabulary.selection import select
from training.vocabulary.shrinking import shrink
from training.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Count, select, shrink, certify."""
    base = stage.input("base")
    tokenizer = TokenizerFile.read(base / "tokenizer.json")
    before = read_tokenizer(base / "tokenizer.json")
    corpora = find_corpora(config.init, config.languages, config.folder("data"), config.mirror)
    counts = count_pieces(corpora, before, config.languages, tokenizer.size, config.init.scripts)
    prompts = before.encode_batch([prompt for prompt in config.base.prompts.values() if prompt])
    needed = np.unique(np.array([token for prompt in prompts for token in prompt.ids], dtype=np.int64))
    selection = select(tokenizer, counts.occurrences, config.init, config.languages, needed)

    with stage.scratch() as scratch:
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
