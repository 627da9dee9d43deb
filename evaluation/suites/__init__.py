"""The tasks that models are scored on: open `task.py` first, then `samples.py`, a whole suite in one file."""
