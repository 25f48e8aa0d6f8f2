"""Rows of token ids in padded batches. What a model does with them is the callers' business."""

from collections.abc import Iterator, Sequence

import torch


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
