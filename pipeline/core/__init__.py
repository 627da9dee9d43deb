"""The ground that every stage stands on: open `artefact.py` first. It imports no stage.

Whoever decides what to make imports it, so torch, the Hub's client and the like are imported where they are used.
"""
