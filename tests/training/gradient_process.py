"""One of the processes of test_ppo_processes: gradients of its share, summed; the first one writes them.

Run by `accelerate launch ... -m tests.training.gradient_process FOLDER`; FOLDER holds the models.
"""

import os
import sys
from pathlib import Path

import torch

from rlaif_assets.training.world import join
from tests.training.test_ppo import measured, step_gradients

BATCHES = [[4, 1, 7], [0, 8, 3, 2], [5, 6]]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Before the world is joined, in which transformers lets the first process alone save models.
    rollouts, model, _, value_model = measured("llama", folder / os.environ["RANK"])
    world = join(cpu=True)
    assert world.size == 2
    batches = [list(world.share(rows)) for rows in BATCHES]
    statistics, gradients = step_gradients(rollouts, batches, model, value_model, world)
    if world.first:
        torch.save((statistics, gradients), folder / "gradients.pt")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
