"""Weights in files: checkpoints, published formats, ImageNet."""
