"""Logits to tokens, tokens to text and status. A controller drives the model wrapper and never sees the scheduler."""
