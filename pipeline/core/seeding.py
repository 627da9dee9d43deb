"""Named random generators, all derived from one seed."""

import hashlib

import numpy as np


def derived_seed(seed: int, *names: str) -> int:
    """A 64-bit seed that depends only on `seed` and `names`, so that no consumer shifts another's stream."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *names: str) -> np.random.Generator:
    """A new generator for the purpose described by `names`."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *names)))
