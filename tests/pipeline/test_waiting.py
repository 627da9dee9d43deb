"""How the threads of torch wait for each other, as OpenMP itself tells it."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("asked", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_sleep_unless_the_user_says_otherwise(asked: dict[str, str], policy: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", "import pipeline.check"]  # torch is the first that it imports
    told = subprocess.run(
        command, env=inherited | {"OMP_DISPLAY_ENV": "true"} | asked, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"OMP_WAIT_POLICY = '(\w+)'", told.stderr)) == {policy}  # of all copies that packages bring
