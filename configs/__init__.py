"""What is run: one root config and groups of YAML files; `configs/schema` types them. Open `config.yaml` first."""
