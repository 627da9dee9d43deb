"""Imports go one way: a package imports only the packages listed for it, and none imports `pipeline` itself."""

import ast
import subprocess
import sys
from pathlib import Path

ALLOWED = {  # package -> the packages that it may import besides itself
    "configs": set(),
    "pipeline.core": {"configs"},
    "data": {"configs", "pipeline.core"},
    "training": {"configs", "pipeline.core", "data"},
    "merging": {"configs", "pipeline.core", "data", "training"},
    "evaluation": {"configs", "pipeline.core", "data"},
    "pipeline": {"configs", "pipeline.core", "data", "training", "merging", "evaluation"},
}


def package_of(module: str) -> str:
    """The package that a module is in."""
    return "pipeline.core" if module.startswith("pipeline.core") else module.partition(".")[0]


def imported(file: Path) -> set[str]:
    """The modules that a file imports, also inside functions and for type checkers."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return named | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def test_imports_go_one_way(repository: Path) -> None:
    upward, seen = [], set()
    for file in (path for package in ALLOWED for path in repository.glob(f"{package.replace('.', '/')}/**/*.py")):
        package = package_of(".".join(file.relative_to(repository).with_suffix("").parts))
        wanted = {package_of(module) for module in imported(file)} & ALLOWED.keys()
        seen |= {(package, other) for other in wanted}
        upward += [f"{file.relative_to(repository)} imports {other}" for other in wanted - {package} - ALLOWED[package]]
    assert not upward
    assert ("merging", "training") in seen and ("pipeline", "evaluation") in seen  # else nothing was checked


def test_deciding_what_to_make_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'mteb', 'polars', 'sklearn', 'huggingface_hub', 'wandb', 'trackio'}"
    code = f"import sys, pipeline.run; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_data_that_no_benchmark_is_compared_with_are_made_without_torch_and_mteb(tmp_path: Path) -> None:
    config = f"composed('profile=tiny', 'runs={tmp_path}', 'stages=[data]')"
    code = f"import sys; from pipeline.run import run; from pipeline.application import composed; run({config}); "
    code += "print({'torch', 'mteb'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
