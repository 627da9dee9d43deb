"""A run's report as a page, a model card and checked claims: open `build.py` first; `record.py` reads the artefacts."""
