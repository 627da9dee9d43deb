"""Keeps what SentencePiece learns from the same texts: that is most of making a random base, three seconds each."""

import hashlib
from typing import Any

from sentencepiece import SentencePieceTrainer

LEARNT: dict[str, bytes] = {}  # models by a digest of texts and options; empty it to learn them again


def keep_pieces() -> None:
    """Let SentencePiece learn repeated input only once per process."""
    train = SentencePieceTrainer.train

    def kept(*, sentence_iterator: Any, model_writer: Any, **options: Any) -> None:
        texts = list(sentence_iterator)
        key = hashlib.sha256(repr((texts, sorted(options.items()))).encode()).hexdigest()
        if key not in LEARNT:
            train(sentence_iterator=iter(texts), model_writer=model_writer, **options)
            LEARNT[key] = model_writer.getvalue()
        else:
            model_writer.write(LEARNT[key])

    SentencePieceTrainer.train = kept
