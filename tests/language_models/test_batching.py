"""Batches of similar rows, and smaller ones where memory does not suffice."""

from collections.abc import Callable

import pytest
import torch

from rlaif_assets.language_models.batching import in_halves, length_batches
from rlaif_assets.language_models.errors import ModelError


def test_length_batches() -> None:
    batches = list(length_batches([5, 9, 2, 9, 30, 4], 20))
    assert batches == [[4], [1, 3], [0, 5, 2]]
    assert list(length_batches([], 20)) == []


def cuda() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def cpu() -> Exception:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@pytest.mark.parametrize("error", [cuda, cpu])
def test_halves_until_the_memory_suffices(error: Callable[[], Exception]) -> None:
    asked: list[int] = []

    def work(batch_tokens: int) -> str:
        asked.append(batch_tokens)
        if batch_tokens > 300:
            raise error()
        return "done"

    assert in_halves(work, 1024) == ("done", 256) and asked == [1024, 512, 256]


def test_no_batch_that_fits_is_an_error() -> None:
    asked: list[int] = []

    def work(batch_tokens: int) -> None:
        asked.append(batch_tokens)
        raise cuda()

    with pytest.raises(ModelError, match=r"out of memory with batches of 64 tokens: .*lora_rank"):
        in_halves(work, 256)
    assert asked == [256, 128, 64]


def test_other_errors_are_not_taken_for_it() -> None:
    def work(batch_tokens: int) -> None:
        raise RuntimeError("shapes do not agree")

    with pytest.raises(RuntimeError, match="shapes do not agree"):
        in_halves(work, 256)
