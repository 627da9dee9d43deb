"""The stage init: from a base and prepared pairs to a certified shrunk model."""

import dataclasses
import filecmp
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from configs.schema.config import Config
from configs.schema.init import BaseConfig, CorpusConfig, InitConfig
from pipeline.core.artefact import Manifest
from pipeline.core.models import load_folder
from pipeline.run import make
from tests.support.runs import file_names, run_main
from tests.support.small_bases import E5, TINY, config, tiny_base, true_tokenizer
from tests.support.zoo import OF_QWEN, TEXTS, animal, edit, expected
from training.bases.random_model import sample_texts
from training.bases.sources import SAMPLES
from training.cost_model import KNOWN, shape_of_run

BGE_M3 = KNOWN["BAAI/bge-m3"]
SPECIAL_CHARACTERS = "Ωмега 漢字 😀🫠 e\u0301 №5 <mask> конец"


def write_pairs(made: Config, texts: list[str]) -> None:
    """A complete data artefact with these texts as anchors, positives and negatives."""
    data = made.folder("data")
    (data / "symmetric").mkdir(parents=True)
    thirds = [texts[place::3] for place in range(3)]
    rows = list(zip(*thirds, strict=False))
    columns = {"anchor": [row[0] for row in rows], "positive": [row[1] for row in rows]}
    columns["negatives"] = [[row[2]] for row in rows]
    pyarrow.parquet.write_table(pyarrow.table(columns), data / "symmetric/pairs.parquet")
    Manifest("data", "complete", "fingerprint of data", {}, {}).write(data)


def samples(number: int = 900) -> list[str]:
    return list(sample_texts(SAMPLES))[:number]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished init stage on the tiny base."""
    made = config(tmp_path_factory.mktemp("runs"), min_counts={"ru": 3})
    extra = Path(made.runs) / "further.txt"
    extra.write_text(SPECIAL_CHARACTERS + "\n", encoding="utf-8")
    made.init.certify = [str(extra)]
    write_pairs(made, samples())
    make("init", made)
    return made


def certificate(made: Config) -> dict[str, Any]:
    return json.loads((made.folder("init") / "certificate.json").read_text(encoding="utf-8"))


def test_the_certificate_says_what_was_compared(tiny_run: Config) -> None:
    found = certificate(tiny_run)
    pairs = found["checked"]["pairs"]
    assert pairs["texts"] == pairs["compared"] == 900 and pairs["mismatches"] == 0
    assert 0 < pairs["covered"] < 900 and pairs["pieces_after"] > pairs["pieces_before"]
    assert found["hidden_states"] == {
        "texts": 64, "tokens": found["hidden_states"]["tokens"], "bitwise_equal": True, "largest_difference": 0.0,
    }  # fmt: skip
    (further,) = (entry for name, entry in found["checked"].items() if name != "pairs")
    assert further["texts"] == 1 and further["covered"] == 0
    assert further["unknown_characters_after"] >= further["unknown_characters_before"] > 0
    share = found["languages"]["ru"]
    assert share["pieces_kept"] < share["pieces"] and 0.9 < share["occurrences_kept"] < 1


@pytest.mark.parametrize("files", [[], ["heldout/*.parquet"]])
def test_texts_that_were_not_counted_show_how_much_of_the_vocabulary_is_missing(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path, hidden_state_texts=1)
    counted, others = samples()[:30], samples()[30:330]
    write_pairs(made, counted)
    (made.folder("data") / "heldout").mkdir()
    columns = {"anchor": others[::2], "positive": others[1::2], "negatives": [[]] * 150}
    pyarrow.parquet.write_table(pyarrow.table(columns), made.folder("data") / "heldout/others.parquet")
    if files:
        made.init.corpora["others"] = CorpusConfig(kind="pairs", files=files)
    make("init", made)
    before, after = (Tokenizer.from_file(str(made.folder(name) / "tokenizer.json")) for name in ("base", "init"))
    pieces = [piece for text in before.encode_batch(others) for piece in text.tokens]
    share = float(np.isin(pieces, list(after.get_vocab())).mean())
    metrics = json.loads((made.folder("init") / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["pieces kept of dev and held-out sets"] == pytest.approx(share)
    assert certificate(made)["hidden_states"]["texts"] == 1  # of all corpora
    assert (share == 1) == bool(files) and ("count more texts" in caplog.text) != bool(files)


def test_the_id_map_lists_every_kept_id_including_specials(tiny_run: Config) -> None:
    rows = pyarrow.parquet.read_table(tiny_run.folder("init") / "vocabulary/id_map.parquet").to_pylist()
    assert [row["piece"] for row in rows[:4]] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert rows[-1]["piece"] == "<mask>" and rows[-1]["old_id"] == TINY.vocabulary - 1
    assert [row["new_id"] for row in rows] == list(range(len(rows)))
    assert all(row["count_ru"] >= 0 for row in rows) and rows[0]["count_ru"] >= len(set(samples()))
    assert len(rows) == certificate(tiny_run)["vocabulary_after"]
    assert certificate(tiny_run)["pinned"]["old_id"] in {row["old_id"] for row in rows}


def test_the_shrunk_model_embeds_covered_texts_as_the_base_does(tiny_run: Config) -> None:
    kept, dropped = embeddings_of(tiny_run, samples()[::3])
    assert len(kept) > 100 and len(dropped) > 7
    assert all(np.array_equal(before, after) for before, after in kept)
    assert any(not np.array_equal(before, after) for before, after in dropped)


def test_every_prompt_of_the_base_is_segmented_as_before(tmp_path: Path) -> None:
    model, prompt = Path(shutil.copytree(tiny_base(), tmp_path / "model")), "Ежегодный Wikipedia съезд: "
    edit(model / "config_sentence_transformers.json", prompts={"clustering": prompt})
    base = dataclasses.replace(TINY, name="prompted", kind="hub", hub=str(model))
    made = config(tmp_path, base, min_counts={"ru": 3})
    write_pairs(made, samples(30))
    make("init", made)
    before, after = (load_folder(made.folder(stage), "cpu") for stage in ("base", "init"))
    assert after.prompts["clustering"] == prompt
    assert before.tokenizer.tokenize(prompt) == after.tokenizer.tokenize(prompt)


def embeddings_of(made: Config, texts: list[str]) -> tuple[list[Any], list[Any]]:
    """(base's, init's) embeddings of texts: those whose pieces are all kept, and the others."""
    from sentence_transformers import SentenceTransformer

    base, init = (
        SentenceTransformer(str(folder), device="cpu") for folder in (made.folder("base"), made.folder("init"))
    )
    rows = pyarrow.parquet.read_table(made.folder("init") / "vocabulary/id_map.parquet").to_pydict()
    kept = set(rows["old_id"])
    found: tuple[list[Any], list[Any]] = [], []
    for text in texts:  # one by one: batches are padded, and padding depends on the other texts
        ids = base.tokenizer(made.base.prompts["query"] + text)["input_ids"]
        pair = (base.encode(text), init.encode(text))
        found[0 if set(ids) <= kept else 1].append(pair)
    return found


def test_with_a_least_count_of_one_the_demo_s_base_stays_the_same_model(tmp_path: Path) -> None:
    made = config(tmp_path, E5, languages=["ru"], hidden_state_texts=16)
    write_pairs(made, samples(300))
    make("init", made)
    found = certificate(made)
    assert found["checked"]["pairs"]["coverage"] == 1.0 and found["checked"]["pairs"]["mismatches"] == 0
    assert found["embedding_rows_before"] == 250_037 and found["padding_rows_dropped"] == 35
    assert found["hidden_states"]["bitwise_equal"]
    kept, dropped = embeddings_of(made, samples(20))
    assert len(kept) == 20 and not dropped
    assert all(np.array_equal(before, after) for before, after in kept)


def test_a_repeated_run_ends_in_the_same_bytes(tiny_run: Config, tmp_path: Path) -> None:
    again = config(tmp_path, init=tiny_run.init)
    write_pairs(again, samples())
    make("init", again)
    outputs = json.loads((again.folder("init") / "manifest.json").read_text())["outputs"]
    assert outputs == json.loads((tiny_run.folder("init") / "manifest.json").read_text())["outputs"]


def test_two_languages_of_one_script_are_a_matter_of_config(tmp_path: Path) -> None:
    made = config(tmp_path, languages=["kk", "ru"])
    made.init.corpora = {}
    for language, text in (("kk", "өзен қыста қатады\nүлкен үй\n"), ("ru", "река зимой замерзает\nбольшой дом\n")):
        path = tmp_path / f"{language}.txt"
        path.write_text(text, encoding="utf-8")
        made.init.corpora[language] = CorpusConfig(kind="text", language=language, files=[str(path)])
    make("init", made)
    found = certificate(made)
    assert set(found["languages"]) == {"kk", "ru"} and found["checked"]["kk"]["coverage"] == 1.0
    names = pyarrow.parquet.read_schema(made.folder("init") / "vocabulary/id_map.parquet").names
    assert names == ["old_id", "new_id", "piece", "score", "count_kk", "count_ru"]


def test_two_languages_coverage_and_size_are_a_matter_of_the_command_line(tmp_path: Path) -> None:
    texts = samples(300) + [f"Үлкен өзен қыста қатады {number}" for number in range(300)]
    write_pairs(Config(runs=str(tmp_path), run="one"), texts)
    common = ["profile=tiny", "run=one", f"runs={tmp_path}", "data=kazakh", "languages=[kk,ru]"]
    made = {}
    for key in ("init.coverage=0.9", "init.max_size=900"):
        ended = run_main("stages=[init]", *common, "init.hidden_state_texts=0", key)
        assert ended.status == 0, ended.err
        made[key] = json.loads((tmp_path / "one/init/certificate.json").read_text(encoding="utf-8"))
    covered, cut = made.values()
    assert set(covered["languages"]) == {"kk", "ru"}
    assert all(0.9 <= share["occurrences_kept"] < 1 for share in covered["languages"].values())
    assert covered["vocabulary_after"] < covered["vocabulary_before"] and cut["vocabulary_after"] == 900
    assert all(found["checked"]["pairs"]["mismatches"] == 0 for found in (covered, cut))


def test_a_sample_of_the_texts_can_be_compared(tmp_path: Path) -> None:
    made = config(tmp_path, certified_texts=100, hidden_state_texts=0)
    write_pairs(made, samples())
    make("init", made)
    found = certificate(made)
    assert found["checked"]["pairs"]["texts"] == 900 and found["checked"]["pairs"]["compared"] == 100
    assert found["hidden_states"] is None


def test_a_base_whose_tokenizer_cuts_and_pads_is_compared_on_whole_texts(tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_base(), tmp_path / "mirror/someone/model"))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(8, stride=2)
    tokenizer.enable_padding(direction="left", pad_id=1193, pad_token="[PAD]", length=16)  # an id that isn't kept
    tokenizer.save(str(model / "tokenizer.json"))
    base = dataclasses.replace(TINY, name="hub", kind="hub", hub="someone/model")
    made = config(tmp_path, base, mirror=str(tmp_path / "mirror"), min_counts={"ru": 3})
    write_pairs(made, samples(300))
    make("init", made)
    found = certificate(made)
    pairs = found["checked"]["pairs"]
    assert pairs["mismatches"] == 0 and pairs["covered"] > 0 and pairs["pieces_before"] > 300 * 8
    assert found["hidden_states"]["tokens"] > 8 * found["hidden_states"]["texts"]
    for folder in (made.folder("base"), made.folder("init")):
        written = json.loads((folder / "tokenizer.json").read_text())
        assert written["truncation"] is None and written["padding"] is None


def base_of_zoo(name: str) -> BaseConfig:
    """The zoo's model of this name as a base."""
    own = OF_QWEN if name == "Qwen3" else {}
    return BaseConfig(name="hub", kind="hub", hub=str(animal(name)), max_length=64, **own)


@pytest.mark.parametrize("name", ["the tiny base", "BERT with word pieces", "ModernBERT", "DistilBERT", "T5", "Qwen3"])
def test_with_its_full_vocabulary_init_is_the_base_whatever_its_tokenizer(name: str, tmp_path: Path) -> None:
    base = base_of_zoo(name)
    made = config(tmp_path, base, rule="full")  # counts none of its corpora
    assert shape_of_run(dataclasses.replace(made, base=dataclasses.replace(base, hub="BAAI/bge-m3"))) == BGE_M3
    make("init", made)  # without data
    before, init = made.folder("base"), made.folder("init")
    weights = (folder / "model.safetensors" for folder in (before, init))
    assert filecmp.cmp(*weights, shallow=False) and file_names(init) == file_names(before) | {"certificate.json"}
    np.testing.assert_allclose(load_folder(init, "cpu").encode(TEXTS, prompt=""), expected(name)[2], atol=1e-6)
    found, shape = certificate(made), shape_of_run(made)
    assert found["vocabulary_before"] == found["vocabulary_after"] == shape.vocabulary
    tensors = load_file(init / "model.safetensors").values()
    assert found["parameters_before"] == found["parameters_after"] == sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("name", ["BERT with word pieces", "ModernBERT", "DistilBERT", "ALBERT", "T5", "Qwen3"])
def test_a_vocabulary_of_word_pieces_or_merges_is_cut_with_the_same_guarantee(name: str, tmp_path: Path) -> None:
    made = config(tmp_path, base_of_zoo(name), min_counts={"ru": 40})
    write_pairs(made, samples())
    make("init", made)
    found = certificate(made)
    pairs = found["checked"]["pairs"]
    assert pairs["mismatches"] == 0 and 0 < pairs["covered"] < 900 and found["hidden_states"]["bitwise_equal"]
    assert found["vocabulary_after"] < found["vocabulary_before"] and "pinned" not in found
    kept, dropped = embeddings_of(made, samples()[::9])
    assert all(np.array_equal(before, after) for before, after in kept)
    assert any(not np.array_equal(before, after) for before, after in dropped)
    most = found["vocabulary_after"] - 10
    made.init.max_size, made.init.hidden_state_texts = most, 0
    make("init", made)
    found = certificate(made)
    assert most - 10 < found["vocabulary_after"] <= most and found["checked"]["pairs"]["mismatches"] == 0


def test_a_smaller_vocabulary_of_another_tokenizer_is_refused_before_data_is_made(tmp_path: Path) -> None:
    model = Path(shutil.copytree(animal("BERT with word pieces"), tmp_path / "model"))
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    edit(model / "tokenizer.json", model=tokenizer["model"] | {"type": "WordLevel"})
    base = ["base.name=hub", "base.kind=hub", f"base.hub={model}", "base.max_length=64"]
    ended = run_main("profile=tiny", "run=one", f"runs={tmp_path}", "stages=[data,init]", *base)
    assert ended.status == 2 and re.search(r"nor plain BPE, but WordLevel .*init=full", ended.err), ended.err
    assert not (tmp_path / "one/data").exists() and not (tmp_path / "one/benchmarks").exists()


@pytest.mark.slow
def test_no_covered_text_of_wiktionary_is_segmented_differently(tmp_path: Path) -> None:
    """150,000 real texts on the true tokenizer; the vocabulary is counted on a tenth of them."""
    from data.sources.wiktionary import senses
    from training.vocabulary.certificate import TokenizerComparison, successors
    from training.vocabulary.counting import WordCounter, piece_counts
    from training.vocabulary.selection import select
    from training.vocabulary.tokenizer_file import TokenizerFile

    texts = [text for sense in senses() for text in (sense.term, sense.definition, *sense.examples)][:150_000]
    tokenizer, before = TokenizerFile.read(true_tokenizer()), Tokenizer.from_file(str(true_tokenizer()))
    counter = WordCounter(before)
    counter.add(texts[::10])
    counts = piece_counts(before, counter.words(), counter.whole, tokenizer.size)
    selection = select(tokenizer, {"ru": counts}, InitConfig(), ["ru"], np.array([], dtype=np.int64))
    tokenizer.write(tmp_path / "tokenizer.json", selection.kept)
    after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    new_ids = successors(selection.kept, tokenizer.size)
    found = TokenizerComparison(before, after, new_ids, tokenizer.unknown_id).agreement(texts)
    print(f"{found.compared} texts, {found.coverage:.4f} covered, {found.mismatches} mismatches")
    assert found.compared == 150_000 and found.mismatches == 0
    assert 0.5 < found.coverage < 1


@pytest.mark.slow
def test_flag_embedding_loads_the_shrunk_folder_with_its_heads(
    tiny_run: Config, tmp_path: Path, flag_embedding: dict[str, str]
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from tests.support.flag_embedding import encoded
    from training.vocabulary.shrinking import shrink
    from training.vocabulary.tokenizer_file import TokenizerFile

    base, folder = tmp_path / "base", tmp_path / "shrunk"
    shutil.copytree(tiny_run.folder("base"), base)
    folder.mkdir()
    for name, size in (("sparse_linear", 1), ("colbert_linear", TINY.hidden)):
        head = torch.nn.Linear(TINY.hidden, size)
        torch.nn.init.constant_(head.bias, 5.0)  # a weight of 0 or less would leave a word out of the sparse vector
        torch.save(head.state_dict(), base / f"{name}.pt")
    kept = pyarrow.parquet.read_table(tiny_run.folder("init") / "vocabulary/id_map.parquet")["old_id"].to_numpy()
    shrink(base, folder, TokenizerFile.read(base / "tokenizer.json"), kept.astype(np.int64))
    texts = ["дом у реки", "снег"]
    found = encoded(folder, texts, flag_embedding)
    assert found["heads"] and all(found["sparse"])
    assert all(np.shape(vectors)[1] == TINY.hidden for vectors in found["multi_vector"])
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(found["dense"], expected, atol=1e-5)
