"""Prune a language model, finetune it without losing a single zero, merge, evaluate."""

__version__ = "0.1.0"
