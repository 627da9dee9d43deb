"""The published card's usage example: its four texts, embedded by this run's model."""

import ast
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError

from configs.schema.evaluation import ReportConfig
from pipeline.core.console import log, quiet
from pipeline.core.errors import first_line
from pipeline.core.models import load_folder

TEXTS = re.compile(r"input_texts\s*=\s*(\[.*?\n\])", re.DOTALL)


def usage_similarities(model: Path, settings: ReportConfig, mirror: str | None) -> dict[tuple[int, int], float]:
    """Similarity of each of the example's queries with each of its passages, by (query, passage).

    Empty if no card is configured or it can't be read: a report must not fail because there is no network.
    """
    card = _card(settings, mirror)
    texts = example_texts(card.read_text(encoding="utf-8")) if card else []
    if not texts:
        return {}
    with quiet():
        encoder = load_folder(model, "cpu")
    half = len(texts) // 2
    queries = encoder.encode_query(texts[:half], normalize_embeddings=True, show_progress_bar=False)
    passages = encoder.encode_document(texts[half:], normalize_embeddings=True, show_progress_bar=False)
    scores = queries @ passages.T
    return {(i, j): float(scores[i, j]) for i in range(half) for j in range(len(texts) - half)}


def example_texts(card: str) -> list[str]:
    """The texts that the card's example defines; empty unless they are four."""
    found = TEXTS.search(card)
    try:
        texts = ast.literal_eval(found.group(1)) if found else []
    except (SyntaxError, ValueError):
        return []
    return texts if len(texts) == 4 and all(isinstance(text, str) for text in texts) else []


def _card(settings: ReportConfig, mirror: str | None) -> Path | None:
    if settings.card is None:
        return None
    if mirror is not None:
        place = Path(mirror) / settings.card / "README.md"
        return place if place.is_file() else None
    try:
        return Path(hf_hub_download(settings.card, "README.md", revision=settings.revision))
    except (HTTPError, OSError, ValueError) as error:  # ValueError: not a Hub id
        log.warning("report: the card of %s can't be read: %s", settings.card, first_line(error))
        return None
