"""All that an update of PPO changes, in one file, written whole or not at all."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_assets.settings import PpoPolicySettings
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.guards import Finding, standing
from rlaif_assets.training.rewards import Reward, alignment

PLAIN = ("kl_coefficient", "batch_tokens", "skipped", "skipped_in_a_row", "history", "rows", "stopped", "alignments")


@dataclass(frozen=True)
class Best:
    """The policy after so many updates."""

    standing: float
    updates: int
    weights: dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """The state between two updates. `history`: each update's metrics; `rows`: the rollouts so far; `alignments`: of
    the reward and the held-out ones. The prompts and seeds of an update follow from its number, so `shuffle` is the
    only generator."""

    model: Any
    value_model: torch.nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    reward: Reward
    shuffle: torch.Generator
    kl_coefficient: float = 0.0
    batch_tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    alignments: list[tuple[float, float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    best: Best | None = None

    def aligned(self, number: int, reward: Reward, scores: np.ndarray, red_team: int) -> tuple[float, float]:
        """The alignment of the reward of this number, from the first scores that it gave (see `rewards.alignment`); a
        judge's or a function's scores mean the same for every prompt and stay."""
        if number == len(self.alignments):
            self.alignments.append(alignment(scores, red_team) if reward.scorer is not None else (0.0, 1.0))
        return self.alignments[number]

    def measured_weights(self, settings: PpoPolicySettings) -> dict[str, torch.Tensor] | None:
        """In the last update of each window, before its steps: the weights that its answers were sampled with."""
        if settings.guards == "off" or (len(self.history) + 1) % settings.guard_window:
            return None
        return {name: weight.cpu().clone() for name, weight in trainable(self.model).items()}

    def keep_best(self, settings: PpoPolicySettings, weights: dict[str, torch.Tensor] | None) -> None:
        """Keeps `measured_weights`, where there are any, if their window stands better than that of those kept."""
        found = None if weights is None else standing(self.history, settings)
        if found is not None and weights is not None and (self.best is None or found > self.best.standing):
            self.best = Best(found, len(self.history) - 1, weights)

    def restore_best(self) -> int:
        """Gives the policy the weights that are kept; the number of updates that they have had."""
        assert self.best is not None  # a guard needs two windows
        self.model.load_state_dict(self.best.weights, strict=False)
        return self.best.updates

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        with aside.open("wb") as file:
            torch.save(self._contents(), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def load(self, path: Path) -> None:
        """Raises TrainingError for a file that is not of this training."""
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            for model, weights in ((self.model, found["model"]), (self.value_model, found["value_model"])):
                if weights.keys() != trainable(model).keys():
                    raise ValueError("it holds other weights")
                model.load_state_dict(weights, strict=False)
            for optimizer, state in zip(self.optimizers, found["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.shuffle.set_state(found["shuffle"])
            self.reward.mean, self.reward.spread = found["normalisation"]
            self.findings = [Finding(**values) for values in found["findings"]]
            self.best = Best(**found["best"]) if found["best"] else None
            found["batch_tokens"] = min(found["batch_tokens"], self.batch_tokens)
            for name in PLAIN:
                setattr(self, name, found[name])
        except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{path} is no checkpoint of this training: remove it to begin anew ({error})"
            ) from error

    def _contents(self) -> dict[str, Any]:
        return {
            "model": trainable(self.model),
            "value_model": trainable(self.value_model),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "shuffle": self.shuffle.get_state(),
            "normalisation": (self.reward.mean, self.reward.spread),
            "findings": [vars(finding) for finding in self.findings],
            "best": self.best and vars(self.best),
            **{name: getattr(self, name) for name in PLAIN},
        }


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
