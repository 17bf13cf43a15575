"""Checkpoint families: how the tensors and fields of each map onto QKViT, one file a family."""
