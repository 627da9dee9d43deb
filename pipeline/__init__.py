"""How stages run alike. Open `chain.py` first: the whole chain on one page; `core/` is the ground below the stages."""

import os

# Before torch is imported, in commands and ranks alike: OpenMP's threads sleep while they wait. Those that spin, its
# default, take the cores from the thread they wait for as soon as something else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
