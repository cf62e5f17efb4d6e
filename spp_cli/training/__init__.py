"""Training of adapters, on transformers.Trainer."""
