"""Training: bases in `bases`, the vocabulary of init in `vocabulary`, fine-tuning here. Open `finetune.py` first."""
