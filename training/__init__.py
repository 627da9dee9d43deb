"""How a model comes to be: base models, the smaller vocabulary, losses, the batch plan, and fine-tuning."""
