"""The typed config: a dataclass beside each YAML group; `config.py` is the root."""
