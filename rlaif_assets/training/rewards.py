"""What PPO is paid by: a preference model, the judge itself (direct RLAIF), or a person's Python function.

All three give a raw score per answer, on any scale. `Reward.normalised` brings them to mean 0 and spread 1 over answers
of SL-CAI, so that one KL coefficient and one score clip mean the same for each.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.judge import Method
from rlaif_assets.feedback.rating import EndpointRater, Failure, LocalRater, Rater, score
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.records import JudgingPrinciple, Prompt
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings
from rlaif_assets.store.fingerprint import sha256_text
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.preference_model import PreferenceScorer

JUDGE = "judge"
LEAST_ALIGNED = 16
MOST_SCALED = 3.0


@dataclass
class Reward:
    """`rate` gives raw scores (N,) of answers to prompts, in order. `mean` and `spread` are those of SL-CAI's answers,
    None until `fit`. `scorer` is the preference model behind it, where there is one."""

    name: str
    rate: Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
    mean: float | None = None
    spread: float | None = None
    scorer: PreferenceScorer | None = None

    def scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        """(N,) raw scores. Raises TrainingError for one that is not finite, and naming the prompt."""
        scores = np.asarray(self.rate(prompts, texts), dtype=np.float64)
        if scores.shape != (len(prompts),):
            raise TrainingError(
                f"the reward {self.name} gave scores of shape {scores.shape} for {len(prompts)} answers"
            )
        if not np.isfinite(scores).all():
            bad = prompts[int(np.flatnonzero(~np.isfinite(scores))[0])].prompt_id
            raise TrainingError(f"the {self.name}'s score of an answer to prompt {bad} is not finite: {self._advice}")
        return scores

    def fit(self, scores: np.ndarray) -> None:
        """Takes mean and (population) spread from these scores, of answers of the policy that PPO starts from."""
        if scores.std() == 0.0:
            raise TrainingError(
                f"the {self.name} scores all {len(scores)} first answers alike: there is nothing to learn"
            )
        self.mean, self.spread = float(scores.mean()), float(scores.std())

    def normalised(self, scores: np.ndarray) -> np.ndarray:
        assert self.mean is not None and self.spread is not None
        return (scores - self.mean) / self.spread

    @property
    def _advice(self) -> str:
        return "train it again" if self.scorer else "see what it does with this prompt"


@dataclass(frozen=True)
class JudgeSource:
    """The feedback model as PPO's reward: a model in `folder`, or `endpoint` (URL, model, version) read by `method`."""

    principles: Sequence[JudgingPrinciple]
    seed: int
    settings: FeedbackModelSettings
    folder: Path | None = None
    endpoint: tuple[str, str, str | None] | None = None
    method: Method = "logprobs"


RewardSource = Path | str | JudgeSource
"""What a reward is opened from: a preference model's folder, a function's place, or a judge."""


def open_reward(
    source: RewardSource,
    compute: ComputeSettings,
    load: Callable[[Path], LocalModel] | None = None,
    connect: Callable[[str, str, str | None], Endpoint] | None = None,
) -> Reward:
    """`load` and `connect` give models and endpoints that are open already; without them they are opened here."""
    if isinstance(source, Path):
        return preference_reward(source, compute)
    if isinstance(source, str):
        return function_reward(source)
    if source.folder is not None:
        rater: Rater = LocalRater(load(source.folder) if load else load_model(source.folder, compute))
    else:
        assert source.endpoint is not None
        url, model, version = source.endpoint
        endpoint = connect(url, model, version) if connect else Endpoint(url, model, compute, version)
        rater = EndpointRater(endpoint, source.method, source.settings)
    return judge_reward(rater, source.principles, source.seed)


def alignment(scores: np.ndarray, red_team: int) -> tuple[float, float]:
    """Shift and scale by which (score - shift) / scale brings the scores from row `red_team` on, which are of helpful
    prompts, to mean and spread of those before.

    A preference model learns differences between answers to one prompt: how it scores one kind of prompt against the
    other is arbitrary, and may lie beyond the clip. The scale is at most MOST_SCALED either way, for a spread of nearly
    nothing is one of prompts that have no better answer. (0, 1) where either kind has fewer than LEAST_ALIGNED answers,
    or all of one score.
    """
    sides = scores[:red_team], scores[red_team:]
    if min(map(len, sides)) < LEAST_ALIGNED or min(side.std() for side in sides) == 0.0:
        return 0.0, 1.0
    scale = float(np.clip(sides[1].std() / sides[0].std(), 1 / MOST_SCALED, MOST_SCALED))
    return float(sides[1].mean() - scale * sides[0].mean()), scale


def preference_reward(folder: Path, compute: ComputeSettings) -> Reward:
    """The preference model in `folder`, normalised by what is stored beside its weights.

    Text passes between the models, so their tokenizers may differ; what is too long for the preference model loses its
    beginning.
    """
    scorer = PreferenceScorer(folder, compute)
    mean, spread = scorer.normalisation()
    return Reward(
        "reward model",
        lambda prompts, texts: scorer.scores([prompt.messages for prompt in prompts], texts),
        mean,
        spread,
        scorer,
    )


def judge_reward(rater: Rater, principles: Sequence[JudgingPrinciple], seed: int) -> Reward:
    """The judge rates each answer under one principle, drawn by the prompt's hash (Lee et al. 2309.00267, section 2.3).

    What it cannot rate raises TrainingError: every answer needs a reward.
    """

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        drawn = [draw_principle(principles, prompt.prompt_id, seed, "reward").text for prompt in prompts]
        scores = np.zeros(len(prompts))
        for principle in dict.fromkeys(drawn):
            rows = [row for row, text in enumerate(drawn) if text == principle]
            ratings = score(rater, [prompts[row].messages for row in rows], [texts[row] for row in rows], principle)
            for row, rating in zip(rows, ratings, strict=True):
                if isinstance(rating, Failure):
                    raise TrainingError(
                        f"the judge cannot rate an answer to prompt {prompts[row].prompt_id}: {rating.reason}"
                    )
                scores[row] = rating.score
        return scores

    return Reward("judge", rate)


def function_reward(place: str) -> Reward:
    """A function of keyword arguments `prompts` (lists of messages) and `completions` ([{role, content}] each) that
    returns a number per answer, as TRL's reward functions do. `place`: "package.module:name" or "FILE.py:name"."""
    function = _load(place)

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        try:
            found = function(
                prompts=[[dict(message) for message in prompt.messages] for prompt in prompts],
                completions=[[{"role": "assistant", "content": text}] for text in texts],
            )
            return np.asarray(found, dtype=np.float64)
        except Exception as error:
            raise TrainingError(f"the reward {place} failed: {type(error).__name__}: {error}") from error

    return Reward(f"function {place}", rate)


def function_fingerprint(place: str) -> str:
    """Hash of the source of the file that the function stands in: it decides the policy."""
    function = _load(place)
    unwrapped = inspect.unwrap(function)
    try:
        source = inspect.getsourcefile(unwrapped if inspect.isroutine(unwrapped) else type(unwrapped))
    except TypeError:
        source = None
    if source is None:
        raise TrainingError(
            f"ppo_policy.reward {place}: its source cannot be read, so a change of it could not be told"
        )
    return sha256_text(Path(source).read_text(encoding="utf-8"))


def _load(place: str) -> Callable[..., Any]:
    """Raises TrainingError where there is no such function."""
    where, _, name = place.rpartition(":")
    choices = f"reward_model, reward_model_half_a, {JUDGE}, package.module:function or FILE.py:function"
    wanted = f"ppo_policy.reward {place!r}: write {choices}"
    if not where:
        raise TrainingError(wanted)
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"rlaif_reward_{sha256_text(where)[:12]}", where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look there
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except Exception as error:
        raise TrainingError(f"{wanted}; {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise TrainingError(f"{wanted}; {where} has no function {name!r}")
    return function
