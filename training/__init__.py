"""How a model comes to be. Open `finetune.py` first; a base starts in `bases`, init in `vocabulary`."""
