"""Quantized weights: made while plain ones are loaded, or read from checkpoints that have them. No kernels."""
