"""The ground that every stage stands on: open `artefact.py` first. It imports no stage.

Whoever decides what to make imports it, so the Hub's client and the like are imported where they are used. Only who
makes something imports `models.py`, `embedding.py`, `heads.py`, `packed.py` and `precision.py`, which need torch.
"""
