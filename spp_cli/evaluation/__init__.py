"""How good a model is: perplexity on held-out text, and accuracy in lm-evaluation-harness."""
