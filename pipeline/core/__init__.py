"""The ground that every stage stands on: open `artefact.py` first. It imports no stage."""
