"""Model evaluation: open `evaluate.py` first, `suites/task.py` for a task, `report/build.py` for the page."""
