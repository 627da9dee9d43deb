"""The typed config: a dataclass for each YAML group; `config.py` is the root.

`make settings` (pipeline/settings.py) parses the comments of fields: the lines above a field and the end of its line.
"""
