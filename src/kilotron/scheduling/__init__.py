"""Who runs, how many tokens, which blocks. Pure Python: integers and lists, no tensors, no clock of its own."""
