"""Keys and values of prefixes that rows share, each token's kept once and gathered for every row that goes on from it.

Which tokens are kept where, and for how long, is `prefix_scores`' business.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Places:
    """Of one forward pass: `past` (tokens, rows), the slots of the tokens before each row's own, and which of the new
    tokens to keep: those of `rows` at `steps`, in `slots`, each (kept tokens,)."""

    past: torch.Tensor
    rows: torch.Tensor
    steps: torch.Tensor
    slots: torch.Tensor


class PooledLayer(DynamicLayer):
    """A cache layer whose past is gathered from a pool (slots, heads x head size). Set `places` before each forward."""

    places: Places
    key_pool: torch.Tensor
    value_pool: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.key_pool = key_states.new_empty(self.capacity, key_states.shape[1] * key_states.shape[3])
        self.value_pool = value_states.new_empty(self.capacity, value_states.shape[1] * value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Past and new tokens, (rows, heads, past + new, head size), of the new ones alone."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._join(self.key_pool, key_states), self._join(self.value_pool, value_states)

    def _join(self, pool: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        rows, heads, width, size = states.shape
        new = states.permute(2, 0, 1, 3)  # tokens first: the gathered past is then one piece of memory
        if len(self.places.slots):
            pool[self.places.slots] = new[self.places.steps, self.places.rows].flatten(1)
        past = len(self.places.past)
        if past == 0:
            return states
        joined = states.new_empty(past + width, rows, heads, size)
        torch.index_select(pool, 0, self.places.past.flatten(), out=joined[:past].view(past * rows, heads * size))
        joined[past:] = new
        return joined.permute(1, 2, 0, 3)

    def get_seq_length(self) -> int:
        return len(self.places.past)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return len(self.places.past) + query_length, 0
