"""A study compares arms over seeds: `comparison.py` has the statistics, `table.py` the output."""
