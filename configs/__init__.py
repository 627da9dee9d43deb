"""What is run: one root config, groups of YAML beside it; `configs/schema` types them. Open `config.yaml` first."""
