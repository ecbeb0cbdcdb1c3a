"""Weights in files: checkpoints, published SSDs, ImageNet trunks."""
