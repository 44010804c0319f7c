"""Quantization: integer weights that are zero exactly where the mask is, and the activations between them."""
