"""Rows of token ids in padded batches, and smaller ones where memory does not suffice. What a model does with them is
the callers' business."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from rlaif_assets.language_models.errors import ModelError

Found = TypeVar("Found")
SMALLEST = 64  # padded tokens of a batch below which halving again is hopeless


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches, longest first, so that rows x longest stays within `budget`; at least one row each."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], width: int, left: bool) -> torch.Tensor:
    """(rows, width) filled up with id 0, which callers mask or never look at."""
    padded = [[0] * (width - len(row)) + list(row) if left else list(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long)


def in_halves(work: Callable[[int], Found], batch_tokens: int) -> tuple[Found, int]:
    """`work(batch_tokens)`, with half of it as often as the memory does not suffice; and the number that did.

    `work` begins anew at each call. Raises ModelError where not even small batches fit.
    """
    while True:
        try:
            return work(batch_tokens), batch_tokens
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if batch_tokens < 2 * SMALLEST:
                raise ModelError(
                    f"out of memory with batches of {batch_tokens} tokens: take a smaller model or shorter texts; for "
                    "SL-CAI and PPO adapters (lora_rank) or compute.gradient_checkpointing help too"
                ) from error
        # Outside of the handler: there the error's traceback would keep the tensors alive.
        torch.cuda.empty_cache()
        batch_tokens //= 2


def _out_of_memory(error: RuntimeError) -> bool:
    """The CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
