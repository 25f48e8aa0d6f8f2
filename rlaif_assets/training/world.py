"""The processes that train one policy together, each on its share of the answers. One process is a world too.

Started by `accelerate launch` (see `ppo_processes`). Every process holds the same weights and makes the same steps:
what differs is gathered or summed before it is used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes; the first one writes what all have made."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part: every `size`-th item."""
        return items[self.rank :: self.size]

    def gather(self, mine: Sequence[Item], count: int) -> list[Item]:
        """All `count` items in order, where each process has those of its share."""
        if self.size == 1:
            return list(mine)
        from accelerate.utils import gather_object

        found: list[Any] = [None] * count
        for rank, part in enumerate(gather_object([list(mine)])):
            found[rank :: self.size] = part
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, of tensors of one shape."""
        if self.size == 1:
            return values
        held = values.to(self.device)
        torch.distributed.all_reduce(held)
        return held.to(values.device)

    def sum_gradients(self, models: Iterable[nn.Module]) -> None:
        """Puts the sum over processes into the gradients of all trainable parameters; a missing one counts as zeros."""
        if self.size == 1:
            return
        for model in models:
            trained = [p for p in model.parameters() if p.requires_grad]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
            torch.distributed.all_reduce(flat)
            for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def leave(self) -> None:
        """Waits for the others."""
        if self.size > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def join(cpu: bool) -> World:
    """The world that `accelerate launch` started this process in: gloo on CPUs, NCCL on GPUs, one each."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    return World(state.process_index, state.num_processes, str(state.device))
