"""How many tokens a model can see, by whatever name its configuration has that."""

from __future__ import annotations

from typing import Any

__all__ = ["context_of"]

# In most the first; n_positions in GPT-2 and the like, max_seq_len in MPT, max_target_positions in
# decoders of speech, max_sequence_length in some models that bring their own code.
_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_target_positions",
)


def context_of(config: Any) -> int | None:
    """Return how many tokens the model of ``config`` can see; None if that has no limit.

    XLNet, which has none, says −1.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in _NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
