"""Sparsity patterns, the keep masks they make, and the check that a model has them."""
