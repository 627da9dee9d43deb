"""A tiny XLM-RoBERTa with random weights and a small Unigram tokenizer, for tests: made in a second."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, XLMRobertaConfig

from configs.schema.init import BaseConfig
from pipeline.core.errors import UserError
from pipeline.core.seeding import derived_seed
from training.bases.folder import write_modules, write_tokenizer_config

ATTENTION_HEADS = 4
FAIRSEQ_PIECES = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; every other piece has the id SentencePiece index + 1
SPECIAL_PIECES = 3  # <unk>, <s> and </s> come first in the SentencePiece file
WEIGHT_DEVIATION = 0.2  # at the usual 0.02 two layers give every text nearly the same <s> vector, and nothing learns


def make_random(config: BaseConfig, folder: Path, seed: int, samples: Path) -> dict[str, Any]:
    """Write the base into `folder`; the bytes depend only on the config, the seed and the samples' texts.

    Raises UserError: there are no texts in the samples.
    """
    proto = train_pieces(sample_texts(samples), config.vocabulary - 2)
    (folder / "sentencepiece.bpe.model").write_bytes(proto)
    size = write_tokenizer(proto, folder / "tokenizer.json")
    write_tokenizer_config(folder, config.max_length)
    random_model(model_config(config, size), seed).save_pretrained(folder)
    write_modules(folder, config, config.hidden)
    return {"source": "random weights", "vocabulary": size}


def sample_texts(folder: Path) -> Iterator[str]:
    """All texts in the parquet and jsonl files below `folder`, in the order of their paths."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield from _strings(pyarrow.parquet.read_table(path).to_pylist())
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                yield from _strings([json.loads(line) for line in lines])


def train_pieces(texts: Iterator[str], size: int) -> bytes:
    """A SentencePiece Unigram model of at most `size` pieces, with XLM-R's normaliser (nmt_nfkc)."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("no sample texts for the tiny base", where="data/samples", remedy="restore the samples")
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,  # sums in one order, so the same bytes each time
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(proto: bytes, path: Path) -> int:
    """Write the `tokenizer.json` of a SentencePiece model in XLM-R's layout; returns its number of ids."""
    model = ModelProto.FromString(proto)
    vocabulary = [(piece, 0.0) for piece in FAIRSEQ_PIECES]
    vocabulary += [(piece.piece, piece.score) for piece in model.pieces[SPECIAL_PIECES:]]
    vocabulary.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    specials = [AddedToken(piece, normalized=False, special=True) for piece in FAIRSEQ_PIECES]
    tokenizer.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path))
    return len(vocabulary)


def model_config(config: BaseConfig, vocabulary: int) -> XLMRobertaConfig:
    """The configuration of an XLM-R of this size."""
    return XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=ATTENTION_HEADS,
        intermediate_size=4 * config.hidden,
        max_position_embeddings=config.max_length + 2,  # positions start after the id of <pad>
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=WEIGHT_DEVIATION,
    )


def random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """The library's own initialisation from a separate seed; torch's global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "base"))
        return AutoModel.from_config(config)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
