"""Small model folders of every published kind: what is next to the transformer, and how it is laid out."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
    WordWeights,
)
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import ByteLevel as ProcessorOfBytes
from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from pipeline.core.console import quiet
from tests.support.small_bases import kept_folder, tiny_base
from training.bases.random_model import sample_texts
from training.bases.sources import SAMPLES

TEXTS = [
    "Река",
    "По реке идёт первый лёд, и паром больше не ходит",
    "ПИСЬМО пришло в Четверг",
    "Кошка спит на подоконнике и не слышит, как за окном шумит дождь. " * 4,
]
WIDTH = 32
Change = Callable[[Path], Any]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; a missing file is created."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes, ensure_ascii=False), encoding="utf-8")


def with_modules(*further: Callable[[], torch.nn.Module]) -> Change:
    """The tiny transformer with these modules after it, as the library saves them."""

    def change(folder: Path) -> None:
        torch.manual_seed(0)
        modules = [Transformer(str(tiny_base())), *(make() for make in further)]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)

    return change


def pooled(mode: Any = "cls", **options: Any) -> Callable[[], Pooling]:
    """Pooling of the tiny transformer's tokens."""
    return lambda: Pooling(WIDTH, mode, **options)


def word_weights() -> WordWeights:
    """A weight for every piece, of which one is not 1."""
    pieces = Tokenizer.from_file(str(tiny_base() / "tokenizer.json")).get_vocab()
    return WordWeights(sorted(pieces, key=pieces.__getitem__), {"▁ре": 2.0, "</s>": 3.0})


def edited(name: str, **changes: Any) -> Change:
    """The tiny base with other values in one JSON file."""

    def change(folder: Path) -> None:
        shutil.copytree(tiny_base(), folder)
        edit(folder / name, **changes)

    return change


def without(*names: str) -> Change:
    """The tiny base without these files."""

    def change(folder: Path) -> None:
        shutil.copytree(tiny_base(), folder, ignore=shutil.ignore_patterns(*names))

    return change


def left_out_prompt(folder: Path) -> None:
    """Prompts that the pooling leaves out."""
    with_modules(pooled("mean", include_prompt=False), Normalize)(folder)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "вопрос: ", "document": "ответ: "})


def padded_and_cut(folder: Path) -> None:
    """A tokenizer.json with the truncation and padding that were set when it was saved."""
    shutil.copytree(tiny_base(), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8, stride=2)
    tokenizer.enable_padding(direction="left", pad_id=1, pad_token="<pad>", length=16)
    tokenizer.save(str(folder / "tokenizer.json"))


def bert(folder: Path, side: str = "right") -> None:
    """A BERT with the tiny tokenizer: its positions count from the start of the row, padding included."""
    shutil.copytree(tiny_base(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    shape = {key: config[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    BertModel(BertConfig(**shape, intermediate_size=64, max_position_embeddings=64)).save_pretrained(folder)
    edit(folder / "tokenizer_config.json", padding_side=side)


def with_other_tokenizer(model: Any, tokenizer: Tokenizer, trainer: Any) -> Change:
    """A model of another family, whose tokenizer learns its pieces from the bundled samples."""

    def change(folder: Path) -> None:
        tokenizer.train_from_iterator(list(sample_texts(SAMPLES))[:300], trainer)
        ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **BRACKETED)
        torch.manual_seed(0)
        fast.save_pretrained(folder / "plain")
        AutoModel.from_config(model).save_pretrained(folder / "plain")
        modules = [Transformer(str(folder / "plain")), Pooling(WIDTH, "cls"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
        shutil.rmtree(folder / "plain")

    return change


BRACKETED = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
ENDS = {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
SIZES: dict[str, Any] = {
    **{"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0, "vocab_size": 1000},
}


def word_pieces() -> Change:
    """A BERT with its own kind of tokenizer."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=1000, special_tokens=[*BRACKETED.values()], show_progress=False)
    return with_other_tokenizer(BertConfig(**SIZES), tokenizer, trainer)


def of_bytes(family: str, **shape: Any) -> Change:
    """A model of this family, whose pieces are of bytes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, alphabet = ByteLevel(add_prefix_space=False), ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=1000, special_tokens=[*BRACKETED.values()], initial_alphabet=alphabet, show_progress=False
    )
    return with_other_tokenizer(AutoConfig.for_model(family, **SIZES, **shape), tokenizer, trainer)


# Settings of a base.
OF_QWEN: dict[str, Any] = {
    "pooling": "lasttoken",
    "prompts": {"query": "Instruct: найди ответ\nQuery:", "document": ""},
}


def qwen(folder: Path) -> None:
    """A decoder in the layout of Qwen3-Embedding: padded on the left, in bfloat16, a text's last token pooled."""
    end, specials = "<|endoftext|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer, spaced = Tokenizer(BPE()), {"add_prefix_space": False, "use_regex": False}
    tokenizer.normalizer = NFC()
    words = Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = PreTokenizers([words, ByteLevel(**spaced)])
    trainer = BpeTrainer(vocab_size=1000, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(list(sample_texts(SAMPLES))[:300], trainer)
    tokenizer.add_special_tokens(specials)
    ends = {"bos_token_id": tokenizer.token_to_id(end), "eos_token_id": tokenizer.token_to_id(end)}
    of_bytes = ProcessorOfBytes(trim_offsets=False, **spaced)
    template = TemplateProcessing(f"$A {end}", special_tokens=[(end, ends["eos_token_id"])])
    tokenizer.post_processor = Processors([of_bytes, template])
    torch.manual_seed(0)
    shape = SIZES | {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": None} | ends
    config = AutoConfig.for_model("qwen3", **shape, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    AutoModel.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    edit(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "padding_side": "left", "model_max_length": 131072}
    named = {"eos_token": specials[2], "pad_token": end, "bos_token": None, "unk_token": None}
    chat = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    edit(folder / "tokenizer_config.json", **settings, **named, add_bos_token=False, chat_template=chat)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in ("cls_token", "mean_tokens", "lasttoken")}
    edit(folder / "1_Pooling/config.json", word_embedding_dimension=WIDTH, **modes, include_prompt=True)
    settings = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    edit(folder / "config_sentence_transformers.json", prompts=OF_QWEN["prompts"], **settings)


def old_layout(folder: Path) -> None:
    """The transformer in its own folder, as sentence-transformers 0.x and 1.x wrote it."""
    shutil.copytree(tiny_base(), folder / "0_Transformer", ignore=shutil.ignore_patterns("?_*", "*sentence_tr*"))
    (folder / "0_Transformer/modules.json").rename(folder / "modules.json")
    for name in ("1_Pooling", "2_Normalize"):
        shutil.copytree(tiny_base() / name, folder / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def sharded_bin(folder: Path) -> None:
    """torch's own files, in two parts with an index."""
    shutil.copytree(tiny_base(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(tiny_base() / "model.safetensors")
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def static(folder: Path) -> None:
    """A vector for each piece, no transformer."""
    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=WIDTH)], device="cpu")
    model.save(str(folder), create_model_card=False)


def bag_of_words(folder: Path) -> None:
    """No neural network at all."""
    model = SentenceTransformer(modules=[BoW(["река", "лёд", "дождь"])], device="cpu")
    model.save(str(folder), create_model_card=False)


def layers(folder: Path) -> None:
    """The mean of several layers of the transformer."""
    weighted = functools.partial(WeightedLayerPooling, WIDTH, num_hidden_layers=2, layer_start=1)
    with_modules(weighted, pooled("mean"))(folder)
    edit(folder / "config.json", output_hidden_states=True)


def headed(auto_class: Any, model_type: str = "xlm-roberta") -> Change:
    """A transformers checkpoint with a head: names with the family's prefix, no modules, mostly no pooler."""

    def change(folder: Path) -> None:
        without("*.safetensors", "modules.json", "?_*", "*sentence_*")(folder)
        edit(folder / "config.json", model_type=model_type)
        torch.manual_seed(0)
        auto_class.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)

    return change


def old_names(folder: Path) -> None:
    """A checkpoint of BERT's early days: LayerNorm's tensors have other names, and positions are stored."""
    headed(AutoModelForPreTraining, "bert")(folder)
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(66)[None]
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})


ZOO: dict[str, Change] = {
    "the tiny base": without(),
    "as the library saves it": with_modules(pooled(), Normalize),
    "Dense": with_modules(pooled(), lambda: Dense(WIDTH, 8), Normalize),
    "LayerNorm": with_modules(pooled(), lambda: LayerNorm(WIDTH)),
    "Dropout": with_modules(pooled(), lambda: Dropout(0.3)),
    "CNN": with_modules(lambda: CNN(WIDTH, 16), lambda: Pooling(48, "max")),
    "LSTM": with_modules(lambda: LSTM(WIDTH, 8), lambda: Pooling(16, "mean")),
    "WordWeights": with_modules(word_weights, pooled("mean")),
    **{f"pooling {mode}": with_modules(pooled(mode), Normalize) for mode in Pooling.POOLING_MODES},
    "pooling cls and mean": with_modules(pooled(("cls", "mean"))),
    "weighted layers": layers,
    "no Normalize": with_modules(pooled()),
    "prompts": edited("config_sentence_transformers.json", prompts={"query": "вопрос: ", "document": "ответ: "}),
    "a prompt by default": edited(
        "config_sentence_transformers.json", prompts={"clustering": "тема: "}, default_prompt_name="clustering"
    ),
    "prompts left out of pooling": left_out_prompt,
    "truncation and padding in tokenizer.json": padded_and_cut,
    "left padding": edited("tokenizer_config.json", padding_side="left"),
    "BERT": bert,
    "BERT with left padding": lambda folder: bert(folder, "left"),
    "BERT with word pieces": word_pieces(),
    # Rotary positions, and a layer that sees near tokens only.
    "ModernBERT": of_bytes("modernbert", local_attention=8, global_attn_every_n_layers=2, **ENDS),
    "DistilBERT": of_bytes("distilbert", hidden_dim=64),
    "ALBERT": of_bytes("albert", embedding_size=WIDTH),  # its layers share their weights
    "T5": of_bytes("t5", d_kv=8, d_ff=64, feed_forward_proj="gated-gelu", **ENDS),  # of which the encoder is kept
    "EuroBERT": of_bytes("eurobert", num_key_value_heads=2, **ENDS),  # groups of heads share keys and values
    "Qwen3": qwen,
    "cut at the start": edited("tokenizer_config.json", truncation_side="left"),
    "lower case": edited("sentence_bert_config.json", do_lower_case=True),
    "shorter texts": edited("sentence_bert_config.json", max_seq_length=16),
    "the last layer but one": edited(
        "sentence_bert_config.json",
        modality_config={"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}},
        module_output_name="token_embeddings",
    ),
    "a length for queries": edited("sentence_bert_config.json", query_length=8),
    "settings of each call": edited("sentence_bert_config.json", processing_kwargs={"text": {"max_length": 8}}),
    "similarity by dot product": edited("config_sentence_transformers.json", similarity_fn_name="dot"),
    "similarity by distance": edited("config_sentence_transformers.json", similarity_fn_name="euclidean"),
    "truncate_dim": edited("config_sentence_transformers.json", truncate_dim=8),
    "old 0_Transformer layout": old_layout,
    "sharded .bin": sharded_bin,
    "static": static,
    "bag of words": bag_of_words,
    "no modules": without("modules.json", "?_*", "*sentence_*"),
    "no config_sentence_transformers.json": without("config_sentence_transformers.json"),
    "masked language model": headed(AutoModelForMaskedLM),
    "classifier": headed(AutoModelForSequenceClassification),
    "BERT as a masked language model": headed(AutoModelForMaskedLM, "bert"),
    "BERT as a classifier": headed(AutoModelForSequenceClassification, "bert"),
    "names of BERT's first days": old_names,
    "a model of another kind": edited("config_sentence_transformers.json", model_type="SparseEncoder"),
}


@functools.cache
def animal(name: str) -> Path:
    """The zoo's folder of this name, made once. Copy before changing a file."""
    folder = kept_folder() / "zoo" / str(list(ZOO).index(name))
    folder.parent.mkdir(exist_ok=True)
    with quiet():
        ZOO[name](folder)
    return folder


@functools.cache
def expected(name: str) -> Any:
    """What the library's `encode_query`, `encode_document` and `encode` return in float32: arrays (texts, width)."""
    with quiet():
        model = SentenceTransformer(str(animal(name)), device="cpu", model_kwargs={"dtype": torch.float32})
        return [encode(TEXTS) for encode in (model.encode_query, model.encode_document, model.encode)]
