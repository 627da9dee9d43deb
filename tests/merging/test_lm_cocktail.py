"""Our LM-Cocktail weights against direct calls of the package, where its conditions hold and where they don't."""

import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.artefact import PairSet, read_dev_sets
from merging.blend import Blend
from merging.lm_cocktail import cocktail_of, few_shot_examples, sample
from pipeline.core.embedding import Prompts, prompts_of
from pipeline.core.errors import UserError
from tests.merging.conftest import make_model, perturb

NO_PROMPTS = dict.fromkeys(("symmetric", "asymmetric"), Prompts("", ""))
SETTINGS = {"batch_size": 2, "max_length": 64, "seed": 5}


@pytest.mark.parametrize("temperature", [5.0, 0.05])
def test_weights_equal_the_packages_on_a_cls_model(models: dict[str, Path], data: Path, temperature: float) -> None:
    from LM_Cocktail.utils import compute_weights
    from transformers import AutoModel, AutoTokenizer

    examples = few_shot_examples(read_dev_sets(data), 11, 7, NO_PROMPTS, seed=5)
    loaded = {name: AutoModel.from_pretrained(folder).eval() for name, folder in models.items()}
    states = [{key: value.clone() for key, value in model.state_dict().items()} for model in loaded.values()]
    tokenizer = AutoTokenizer.from_pretrained(models["init"])
    theirs = compute_weights(
        loaded["init"], tokenizer, states, "encoder", examples, temperature, 2, max_input_length=64, neg_number=7
    )
    ours = cocktail_of(Blend(models), examples, temperature=temperature, **SETTINGS)
    # A float32 loss is off by 1e-6, and the softmax of the losses by a quarter of that over the temperature.
    assert list(ours.weights.values()) == pytest.approx(theirs, abs=1e-6 * max(1, 1 / (4 * temperature)))
    assert ours.weights_at(temperature) == pytest.approx(ours.weights, abs=1e-5)


def test_a_mean_pooled_model_is_judged_by_its_own_vector(data: Path, tmp_path: Path) -> None:
    """The loss of the package's formula, in float64, on what sentence-transformers encodes."""
    prompts = {"query": "query: ", "document": "passage: "}
    base = make_model(tmp_path / "init", pooling="mean", prompts=prompts)
    folders = {"init": base, "other": perturb(base, tmp_path / "other", 1)}
    blend = Blend(folders)
    sides = {side: prompts_of(blend.model, side) for side in ("symmetric", "asymmetric")}
    examples = few_shot_examples(read_dev_sets(data), 3, 7, sides, seed=5)
    ours = cocktail_of(blend, examples, temperature=1.0, **SETTINGS)
    for name in folders:
        blend.set({other: float(other == name) for other in folders})
        losses = []
        for first in range(0, len(examples), 2):
            batch = examples[first : first + 2]
            passages = [text for example in batch for text in [*example["pos"], *example["neg"]]]
            queries = torch.tensor(blend.model.encode([example["query"] for example in batch], prompt="")).double()
            texts = torch.tensor(blend.model.encode(passages, prompt="")).double()
            target = torch.arange(len(batch)) * 8
            losses.append(torch.nn.functional.cross_entropy(queries @ texts.T / 0.05, target))
        assert ours.losses[name] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_in_16_bit_each_weight_is_cast_once_a_model(models: dict[str, Path], data: Path) -> None:
    class Casts(TorchDispatchMode):
        counted: ClassVar = Counter[int]()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in weights:
                self.counted[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    examples = few_shot_examples(read_dev_sets(data), 5, 7, NO_PROMPTS, seed=5)
    blend = Blend(models, precision="bf16")
    weights = {tensor.data_ptr() for tensor in blend.working.values()}
    with Casts():
        found = cocktail_of(blend, examples, temperature=1.0, **SETTINGS)
    assert len(Casts.counted) > 8 and set(Casts.counted.values()) == {len(models)}
    assert len(set(found.losses.values())) == len(models)  # else weights of the model before were used


def test_no_example_is_one_line_that_says_what_to_do(models: dict[str, Path]) -> None:
    scored = PairSet("scored", "symmetric", ["а", "б"], ["1", "2"], [[], []], [0.2, 0.8])
    examples = few_shot_examples([scored], 5, 7, NO_PROMPTS, seed=5)
    with pytest.raises(UserError, match=r"no dev row is a positive pair.*; hold such rows out, or remove lm_cocktail"):
        cocktail_of(Blend(models), examples, temperature=5.0, **SETTINGS)


def test_lower_temperatures_tell_the_models_apart(models: dict[str, Path], data: Path) -> None:
    examples = few_shot_examples(read_dev_sets(data), 5, 7, NO_PROMPTS, seed=5)
    cocktail = cocktail_of(Blend(models), examples, temperature=5.0, **SETTINGS)
    best = min(cocktail.losses, key=lambda name: cocktail.losses[name])
    by_temperature = [cocktail.weights_at(temperature)[best] for temperature in (5.0, 1.0, 0.2)]
    assert by_temperature == sorted(by_temperature)
    assert sum(cocktail.weights_at(0.2).values()) == pytest.approx(1)


def test_module_level_randomness_is_left_as_it_was(models: dict[str, Path], data: Path) -> None:
    examples = few_shot_examples(read_dev_sets(data), 2, 7, NO_PROMPTS, seed=5)
    random.seed(1)
    expected = random.random()
    random.seed(1)
    cocktail_of(Blend(models), examples, temperature=5.0, **SETTINGS)
    assert random.random() == expected


def test_examples_take_their_own_negatives_first_and_never_an_answer() -> None:
    pairs = PairSet(
        name="pairs",
        side="asymmetric",
        anchors=["а", "а", "б", "в"],
        positives=["1", "2", "3", "4"],
        negatives=[["н1", "н2"], ["н3"], [], []],
        scores=[1.0, 1.0, 1.0, 0.5],
    )
    examples = few_shot_examples([pairs], 10, 3, {"asymmetric": Prompts("q ", "d ")}, seed=0)
    assert [example["query"] for example in examples] == ["q а", "q а", "q б"]  # the last row is no pair
    assert examples[0]["pos"] == ["d 1"]
    assert examples[0]["neg"][:2] == ["d н1", "d н2"]
    assert all(len(example["neg"]) == 3 for example in examples)
    everything = few_shot_examples([pairs], 10, 20, {"asymmetric": Prompts("q ", "d ")}, seed=0)
    for example in everything[:2]:
        assert sorted(example["neg"]) == ["d 3", "d 4", "d н1", "d н2", "d н3"]  # all but the answers 1 and 2


def test_missing_negatives_come_from_the_set_before_its_side() -> None:
    large = PairSet("large", "symmetric", ["а", "б", "в"], ["1", "2", "3"], [[], [], []], [1.0] * 3)
    other = PairSet("other", "symmetric", ["г"], ["4"], [["5", "6", "7"]], [1.0])
    across = PairSet("across", "asymmetric", ["д", "е"], ["8", "9"], [["10", "11", "12"], []], [1.0, 1.0])
    examples = few_shot_examples([large, other, across], 10, 3, NO_PROMPTS, seed=0)
    assert set(examples[0]["neg"][:2]) == {"2", "3"}
    assert set(examples[0]["neg"][2:]) <= {"4", "5", "6", "7"}
    examples = few_shot_examples([large, other, across], 10, 12, NO_PROMPTS, seed=0)
    assert {len(example["neg"]) for example in examples} == {4}  # of across, whose side has no other set


def test_too_few_texts_give_all_examples_fewer_negatives() -> None:
    pairs = PairSet("pairs", "symmetric", ["а", "б"], ["1", "2"], [["н1"], []], [1.0, 1.0])
    examples = few_shot_examples([pairs], 10, 7, NO_PROMPTS, seed=0)
    assert [len(example["neg"]) for example in examples] == [2, 2]


def test_a_text_is_not_a_negative_of_itself() -> None:
    pairs = PairSet("pairs", "symmetric", ["а", "б"], ["б", "1"], [[], []], [1.0, 1.0])
    examples = few_shot_examples([pairs], 10, 7, NO_PROMPTS, seed=0)
    assert [example["neg"] for example in examples] == [[], []]  # of "б" there is none, so there is none of "а"


def test_a_sample_has_rows_once_in_their_order_by_the_seed_and_the_name() -> None:
    def drawn(name: str, seed: int) -> list[int]:
        texts = [str(number) for number in range(60)]
        pairs = PairSet(name, "symmetric", texts, texts, [[]] * 60, [1.0] * 60)
        return [int(text) for text in sample(pairs, 30, seed).anchors]

    found = drawn("one", 5)
    assert found == sorted(set(found)) and len(found) == 30
    assert found == drawn("one", 5) and found != drawn("other", 5) and found != drawn("one", 6)
