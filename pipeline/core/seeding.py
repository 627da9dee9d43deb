"""All randomness comes from one seed through named generators."""

import hashlib

import numpy as np


def derived_seed(seed: int, *names: str) -> int:
    """A 64-bit seed that is a pure function of `seed` and `names`, so that no consumer shifts another's stream."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *names: str) -> np.random.Generator:
    """A fresh generator for the purpose that `names` describe."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *names)))
