"""What a model is worth: open `evaluate.py` first, `suites/task.py` for a task, `report/build.py` for the page."""
