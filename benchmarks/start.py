"""What benchmarks start from: a composed config, and the demo's models, made where they are missing."""

import subprocess
import sys
from pathlib import Path

from configs.schema.config import Config
from pipeline.application import composed


def demo_config() -> Config:
    """The config of profile `demo`."""
    return composed("profile=demo")


def demo_base() -> Path:
    """Folder of the demo's base."""
    subprocess.run([sys.executable, "-m", "pipeline.run", "profile=demo", "stages=[base]"], check=True)
    return demo_config().folder("base")


def demo_init() -> Path:
    """Folder of the demo's base with the smaller vocabulary; its stages `data` and `init` run where they have not."""
    subprocess.run([sys.executable, "-m", "pipeline.run", "profile=demo", "stages=[data,init]"], check=True)
    return demo_config().folder("init")
