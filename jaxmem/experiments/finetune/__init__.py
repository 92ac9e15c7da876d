"""Fine-tuning a model with the memory in the loop."""
