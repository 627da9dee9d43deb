"""What every stage builds on: open `artefact.py` first. It imports no stage.

Code that only decides what to make imports it too, so heavy packages such as the Hub's client are imported where they
are used. `device.py`, `models.py`, `embedding.py`, `heads.py` and `packed.py` need torch: only code that makes
something imports these.
"""
