"""Less memory for the same result: smaller batches where memory does not suffice, and gradient checkpointing."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from rlaif_assets.training.errors import TrainingError

Found = TypeVar("Found")
SMALLEST = 64  # padded tokens of a batch below which halving again is hopeless


def in_halves(work: Callable[[int], Found], batch_tokens: int) -> tuple[Found, int]:
    """`work(batch_tokens)`, with half of it as often as the memory does not suffice; and the number that did.

    `work` begins anew at each call. Raises TrainingError where not even small batches fit.
    """
    while True:
        try:
            return work(batch_tokens), batch_tokens
        except torch.OutOfMemoryError as error:
            if batch_tokens < 2 * SMALLEST:
                raise TrainingError(
                    f"out of memory with batches of {batch_tokens} tokens: take a smaller model, adapters "
                    "(ppo_policy.lora_rank) or compute.gradient_checkpointing"
                ) from error
        # Outside of the handler: there the error's traceback would keep the tensors alive.
        torch.cuda.empty_cache()
        batch_tokens //= 2


def use_gradient_checkpointing(*models: Any) -> None:
    """Recomputes layers in the backward pass. It works in training mode alone, so dropout is taken out first."""
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        # Newer versions warn at the older name, older ones have no other.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
