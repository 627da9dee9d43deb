"""The tasks that models are scored on: open `task.py` first, then `samples.py` for a whole suite in one file."""
