"""From logits to tokens. A row's result depends on its logits, parameters, seed and position, and on nothing else."""
