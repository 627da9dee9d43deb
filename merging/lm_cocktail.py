"""LM-Cocktail's weights, softmax of minus the few-shot loss over a temperature, by the package's own batches and loss.

Xiao et al., "LM-Cocktail: Resilient Tuning of Language Models via Model Merging" (arXiv 2311.13534), section 2.
The package's `compute_weights` keeps the losses to itself and loads whole state dicts, so its parts are called instead.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from LM_Cocktail.utils import embedder_loss, preprocess_data_for_embedder

from data.artefact import PairSet
from merging.blend import Blend
from pipeline.core.embedding import Embedder, Prompts
from pipeline.core.errors import UserError
from pipeline.core.seeding import derived_seed, generator

POOL_DRAWS = 100  # passages drawn for an example from its set, and from its side; some may be its own answers
Example = dict[str, Any]  # {"query": text, "pos": [text], "neg": [texts]}


@dataclass(frozen=True)
class Cocktail:
    """LM-Cocktail's weights and losses of the models."""

    weights: dict[str, float]  # by model, at the configured temperature
    losses: dict[str, float]  # by model: contrastive loss at temperature 0.05, mean over batches

    def weights_at(self, temperature: float) -> dict[str, float]:
        """The weights from the same losses at another temperature."""
        losses = torch.tensor(list(self.losses.values()), dtype=torch.float64)
        return dict(zip(self.losses, torch.softmax(-losses / temperature, dim=0).tolist(), strict=True))


def cocktail_of(
    blend: Blend, examples: Sequence[Example], temperature: float, batch_size: int, max_length: int, seed: int
) -> Cocktail:
    """LM-Cocktail's weights for the blend's models on these examples, which all have the same number of negatives.

    Raises UserError where there is no example.
    """
    if not examples:
        remedy = "hold such rows out, or remove lm_cocktail from merging.compare and merging.method"
        raise UserError("no dev row is a positive pair, from which LM-Cocktail learns", where="data.dev", remedy=remedy)
    model, embedder, losses = blend.model, Embedder(blend.model, precision=blend.precision), dict[str, float]()

    def as_transformer(return_dict: bool, **features: torch.Tensor) -> SimpleNamespace:
        """The model's pooled vectors where the package looks for them, (texts, 1, dimension)."""
        return SimpleNamespace(last_hidden_state=embedder.pooled(features)[:, None])

    state = random.getstate()
    random.seed(derived_seed(seed, "merge", "lm_cocktail"))  # the package draws from this generator
    batches = preprocess_data_for_embedder(
        list(examples), model.tokenizer, model.device, batch_size, max_length, neg_number=len(examples[0]["neg"])
    )
    random.setstate(state)
    for name in blend.names:
        blend.set({other: float(other == name) for other in blend.names})
        # A context around all passes of a model caches its cast weights; it is disabled, so sums stay in float32.
        with torch.autocast(model.device.type, enabled=False):
            losses[name] = embedder_loss(as_transformer, batches)
    weights = torch.softmax(-torch.FloatTensor([*losses.values()]) / temperature, dim=-1)  # as by `compute_weights`
    return Cocktail(dict(zip(losses, weights.tolist(), strict=True)), losses)


def few_shot_examples(
    sets: Sequence[PairSet], per_set: int, negatives: int, prompts: Mapping[str, Prompts], seed: int
) -> list[Example]:
    """At most `per_set` positive rows of each set, each with `negatives` passages that are not its answers.

    A row's own negatives come first; the rest is drawn from the other passages of its set, then of its side. Where a
    side has too few texts, all examples get fewer negatives.
    """
    examples = []
    for pairs in sets:
        side = [text for other in sets if other.side == pairs.side and other is not pairs for text in other.passages()]
        pools = [list(dict.fromkeys(texts)) for texts in (pairs.passages(), side)]
        numbers, answers = generator(seed, "merge", "negatives", pairs.name), pairs.answers()
        prompt, chosen = prompts[pairs.side], sample(pairs.positive_rows(), per_set, seed)
        for anchor, positive, own in zip(chosen.anchors, chosen.positives, chosen.negatives, strict=True):
            drawn = [pool[place] for pool in pools for place in numbers.permutation(len(pool))[:POOL_DRAWS]]
            wrong = [text for text in dict.fromkeys([*own, *drawn]) if text != anchor and text not in answers[anchor]]
            texts = [prompt.positive + text for text in wrong[:negatives]]
            examples.append({"query": prompt.anchor + anchor, "pos": [prompt.positive + positive], "neg": texts})
    fewest = min((len(example["neg"]) for example in examples), default=0)
    return [example | {"neg": example["neg"][:fewest]} for example in examples]


def sample(pairs: PairSet, count: int, seed: int) -> PairSet:
    """At most `count` rows in their original order, chosen by `seed` and the set's name."""
    if len(pairs) <= count:
        return pairs
    chosen = generator(seed, "merge", "examples", pairs.name).choice(len(pairs), count, replace=False)
    return pairs.take(sorted(chosen.tolist()))
