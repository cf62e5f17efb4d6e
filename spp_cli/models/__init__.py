"""Checkpoints on disk, and what spp knows of the models in them."""
