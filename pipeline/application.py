"""A thin wrapper around Hydra: typed config in, one line and exit status 2 for what the user can mend."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import Config, checked
from pipeline.console import is_main_process
from pipeline.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

ConfigStore.instance().store(name="schema", node=Config)


def hydra_application(job: Callable[[Config], Any]) -> Callable[[], None]:
    """The command-line entry of `job`; exits with 0, with 2 on a user error, with 128 + n on signal n."""

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def composed(config: DictConfig) -> None:
        job(checked(config))

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as they are instead of as Hydra's own report
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        if not is_main_process():
            sys.argv += ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
        try:
            composed()
        except UserError as error:
            stop(error)
        except (HydraException, OmegaConfBaseException) as error:
            stop(_config_error(error))
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    return main


def stop(error: UserError) -> None:
    """Print the error's one line and leave with status 2."""
    sys.stdout.flush()
    print(error.line, file=sys.stderr, flush=True)
    sys.exit(2)


def _config_error(error: Exception) -> UserError:
    """Hydra's and OmegaConf's multi-line messages as one error; the innermost cause says most."""
    first = str(error).splitlines()[0].rstrip(".")
    inner = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    what = f"{first}: {inner}" if inner and inner not in first else first
    return UserError(
        what,
        where=f"config key {key}" if key else "config",
        remedy="compare with configs/ or the output of --cfg job",
    )
