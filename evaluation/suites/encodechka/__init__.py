"""The ten tasks of encodechka (avidale/encodechka, commit 5e70bca), by its protocol: open `tasks.py` first."""
