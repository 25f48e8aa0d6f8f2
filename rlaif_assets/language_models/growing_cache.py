"""Keys and values of a decode loop, written in place. transformers' own dynamic cache copies all of them at every step,
which for a small model costs more than the step itself. How tokens are chosen is `local`'s business.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

# Tokens to make room for at a time: one copy per so many steps.
ROOM = 64


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose `keys` and `values`, (batch, heads, tokens, head size), are views of a larger buffer."""

    key_buffer: torch.Tensor
    value_buffer: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer, self.value_buffer = with_room(key_states), with_room(value_states)
            self.keys = self.key_buffer[:, :, : key_states.shape[2]]
            self.values = self.value_buffer[:, :, : value_states.shape[2]]
            return self.keys, self.values
        assert self.keys is not None and self.values is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            self.key_buffer = with_room(self.keys, key_states.shape[2])
            self.value_buffer = with_room(self.values, key_states.shape[2])
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        assert self.keys is not None and self.values is not None
        tokens = self.keys.shape[2]
        self.key_buffer, self.value_buffer = self.key_buffer[indices], self.value_buffer[indices]
        self.keys, self.values = self.key_buffer[:, :, :tokens], self.value_buffer[:, :, :tokens]


def with_room(states: torch.Tensor, needed: int = 0) -> torch.Tensor:
    """A copy of (batch, heads, tokens, head size) with `needed + ROOM` more tokens, not yet written."""
    batch, heads, tokens, size = states.shape
    buffer = states.new_empty(batch, heads, tokens + needed + ROOM, size)
    buffer[:, :, :tokens] = states
    return buffer


def growing_cache() -> Cache:
    return Cache(layer_class_to_replicate=GrowingLayer)
