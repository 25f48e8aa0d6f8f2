"""PPO against a reward: rollouts, scores, advantages, updates, in one loop to be read from top to bottom.

Constitutional AI section 4.2, which takes over HH (Bai et al. 2022a) section 4.1. The arithmetic is in `ppo_math.py`;
sampling and batches in `rollouts.py`; rewards in `rewards.py`; what survives a kill in `ppo_checkpoint.py`; several
processes in `world.py`. Nothing here knows of Dagster, MLflow or the warehouse: metrics go out through `log`, rows
through the result.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlaif_assets.language_models.batching import in_halves
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Prompt, Rejection
from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.store.fingerprint import draw_seed
from rlaif_assets.training import ppo_math
from rlaif_assets.training.adapters import with_adapters
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.guards import Finding, boilerplate, findings
from rlaif_assets.training.memory import use_gradient_checkpointing
from rlaif_assets.training.ppo_checkpoint import Checkpoint
from rlaif_assets.training.rewards import Reward
from rlaif_assets.training.rollouts import (
    Rollouts,
    answer_logits,
    drawn_prompts,
    micro_batches,
    pack,
    prompts_that_fit,
    sample_rollouts,
    token_logprobs,
)
from rlaif_assets.training.world import World

MAX_LOGITS = 2**27  # elements of one logits tensor: half a GiB in float32, whatever the vocabulary
MAX_SKIPPED_STEPS = 5
STATISTICS: tuple[str, ...] = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")


@dataclass(frozen=True)
class PpoResult:
    """`metrics`: see `summary`. `rollouts`: one row per answer, in order, with
    prompt_id, update, text, score (normalised, as rewarded), kl (nats, summed over the answer) and tokens. `rejected`:
    the prompts that were never drawn because they are too long. `findings`: the guards that fired, each once; `kept`:
    the number of updates that the saved policy has had, fewer than were made where a guard stopped the training."""

    metrics: dict[str, float]
    rollouts: list[dict[str, Any]]
    rejected: list[Rejection]
    findings: list[Finding]
    kept: int


class ValueModel(nn.Module):
    """A transformer with a scalar per position: the expected normalised score, less the KL still to be paid."""

    def __init__(self, backbone: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, predicts: Tensor) -> Tensor:
        """(B, S) ids and the (B, S) mask of positions that precede an answer token -> flat values, one for each."""
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(hidden[predicts]).squeeze(-1)


def start_value_model(policy: Any, tokenizer: Any, reward: Reward) -> ValueModel:
    """A copy of the reward's preference model and its head where the tokenizers agree, else of the policy with a zero
    head.

    The head is rescaled to the normalised score, so that values start on the scale of the rewards.
    """
    scorer = reward.scorer
    if scorer is None or scorer.tokenizer.get_vocab() != tokenizer.get_vocab():
        return ValueModel(copy.deepcopy(policy.base_model), policy.config.hidden_size)
    preference_model: Any = scorer.model
    value_model = ValueModel(copy.deepcopy(preference_model.base_model), preference_model.config.hidden_size)
    shift, one = reward.normalised(np.array([0.0, 1.0])).tolist()
    with torch.no_grad():
        value_model.head.weight.copy_(preference_model.score.weight * (one - shift))
        value_model.head.bias.fill_(shift)
    return value_model


@torch.no_grad()
def measure(
    rollouts: Rollouts, batches: Sequence[Sequence[int]], model: Any, reference: Any, value_model: ValueModel, t: float
) -> float:
    """Fills in log-probabilities (both at temperature `t`) and values, zeros for rows in no batch; returns the entropy,
    summed over tokens, in nats.

    The old log-probabilities come from the forward pass that training uses, not from decoding, so that the first ratio
    is 1. `reference` None: it is the model without its adapters.
    """
    rollouts.logprobs, rollouts.reference_logprobs, rollouts.values = (torch.zeros(rollouts.mask.shape) for _ in "lrv")
    entropy = 0.0
    for rows in batches:
        input_ids, predicts = pack(rollouts, rows)
        targets = rollouts.flat(rollouts.tokens, rows)
        logits = answer_logits(model, input_ids, predicts, t)
        rollouts.put(rollouts.logprobs, rows, token_logprobs(logits, targets))
        entropy += float((logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)).sum())
        with model.disable_adapter() if reference is None else nullcontext():
            logits = answer_logits(model if reference is None else reference, input_ids, predicts, t)
        rollouts.put(rollouts.reference_logprobs, rows, token_logprobs(logits, targets))
        rollouts.put(rollouts.values, rows, value_model(input_ids, predicts))
    return entropy


def add_gradients(
    rollouts: Rollouts,
    batches: Sequence[Sequence[int]],
    model: Any,
    value_model: ValueModel,
    settings: PpoPolicySettings,
    total: int,
) -> Tensor:
    """Adds the gradients of both losses over all of `batches`, and returns the sums of STATISTICS over their tokens.

    `total`: the answer tokens of the whole step. Every token weighs one of them, so the gradient does not depend on how
    rows are grouped, nor on which process reads them.
    """
    sums = torch.zeros(len(STATISTICS))
    for rows in batches:
        input_ids, predicts = pack(rollouts, rows)
        logits = answer_logits(model, input_ids, predicts, settings.temperature)
        logprobs = token_logprobs(logits, rollouts.flat(rollouts.tokens, rows))
        old_logprobs = rollouts.flat(rollouts.logprobs, rows)
        ratios = ppo_math.ratio(logprobs, old_logprobs)
        policy_losses = ppo_math.policy_loss(ratios, rollouts.flat(rollouts.advantages, rows), settings.clip_range)
        (policy_losses.sum() / total).backward()

        values, returns = value_model(input_ids, predicts), rollouts.flat(rollouts.returns, rows)
        old_values = rollouts.flat(rollouts.values, rows)
        value_losses = ppo_math.value_loss(values, old_values, returns, settings.value_clip_range)
        (value_losses.sum() / total).backward()

        clipped = ((ratios - 1.0).abs() > settings.clip_range).float()
        # k3 with the arguments exchanged: the old policy sampled, so this estimates KL(old || new).
        change = ppo_math.k3(old_logprobs, logprobs)
        sums += torch.stack([x.detach().sum() for x in (policy_losses, value_losses, clipped, change)]).cpu()
    return sums


def shared_scores(reward: Reward, prompts: Sequence[Prompt], texts: Sequence[str], world: World) -> np.ndarray:
    """(N,) raw scores, of which each process gives its share."""
    mine = reward.scores(world.share(prompts), world.share(texts))
    return np.array(world.gather(mine.tolist(), len(prompts)))


def summary(history: Sequence[dict[str, float]], kept: int) -> dict[str, float]:
    """The mean of each metric over a tenth of the updates, those up to the one in which the policy that was kept after
    `kept` updates answered; seconds, skipped steps and number of all updates."""
    own = history[: kept + 1]
    last = own[-max(1, len(own) // 10) :]
    means = {name: sum(m.get(name, 0.0) for m in last) / len(last) for name in history[-1]} if history else {}
    for name in ("seconds_rollout", "seconds_score", "seconds_train"):
        means[name] = sum(metrics[name] for metrics in history)
    if history:
        means["skipped_steps"] = history[-1]["skipped_steps"]
    return means | {"updates": float(len(history))}


def train_ppo(
    policy: Path,
    reward: Reward,
    red_team: Sequence[Prompt],
    helpful: Sequence[Prompt],
    settings: PpoPolicySettings,
    output: Path,
    compute: ComputeSettings,
    log: Callable[[dict[str, float], int], None],
    checkpoint: Path | None = None,
    heldout: Sequence[Reward] = (),
    world: World | None = None,
) -> PpoResult:
    """Trains the policy in folder `policy` (SL-CAI, also the KL's reference) and saves it to `output`.

    `red_team` and `helpful` are training prompts; the caller leaves dev and test out. `harmful_share` of each update's
    rollouts come from `red_team`; a prompt comes again only after all others of its list. Weights and optimiser are
    float32. On the CPU the same inputs, seed and thread count give the same weights, bit for bit, also where a killed
    run left the file `checkpoint`: this one goes on from it and logs its updates anew. The caller removes the file when
    the policy is stored.
    `heldout` rewards are only measured (their mean is `heldout_score`): see `guards.py`, which may end the training.
    In a `world` of several processes each calls this alike; each samples, scores and reads its share of the answers,
    and the first one logs and writes.

    Raises TrainingError: no usable prompt, a score that is not a number, five steps in a row without finite gradients.
    """
    world = world or World()
    # Models. Dropout is off in training too: with it, the first ratio would not be 1.
    local = load_model(policy, compute)
    model: Any = local.model.float().eval()
    value_model = start_value_model(model, local.tokenizer, reward).to(local.device).eval().requires_grad_(True)
    reference = None if settings.lora_rank else copy.deepcopy(model).requires_grad_(False)
    if settings.lora_rank:
        local.model = model = with_adapters(model, settings.lora_rank, settings.seed)
    else:
        model.requires_grad_(True)
    if compute.gradient_checkpointing:
        use_gradient_checkpointing(model, value_model.backbone)
    trained = ((model, settings.learning_rate), (value_model, settings.value_learning_rate))
    optimizers = [
        torch.optim.AdamW(
            [p for p in m.parameters() if p.requires_grad], lr=rate, eps=1e-5, weight_decay=0.0, fused=True
        )
        for m, rate in trained
    ]
    half = torch.autocast(local.device.type, torch.bfloat16, enabled=compute.dtype == "bfloat16")
    answer_tokens = max(1, MAX_LOGITS // model.config.get_text_config().vocab_size)

    # Prompts
    if settings.rollouts < world.size:
        raise TrainingError(
            f"ppo_policy.rollouts={settings.rollouts} are too few for compute.processes={world.size}: each needs one"
        )
    harmful_rows = round(settings.rollouts * settings.harmful_share)
    sources: list[tuple[str, list[Prompt], int]] = []
    encoded: dict[str, list[int]] = {}
    rejected: list[Rejection] = []
    for name, prompts, rows in (
        ("red_team_prompts", red_team, harmful_rows),
        ("helpful_prompts", helpful, settings.rollouts - harmful_rows),
    ):
        fitting = prompts_that_fit(prompts, settings, local)
        if rows and not fitting:
            raise TrainingError(
                f"PPO needs {rows} of {settings.rollouts} rollouts from {name}, but none of its {len(prompts)} prompts "
                f"fits: change ppo_policy.harmful_share or max_prompt_tokens ({settings.max_prompt_tokens})"
            )
        encoded |= fitting
        reason = f"longer than {settings.max_prompt_tokens} tokens, or no room in the context for a whole answer"
        rejected += [Rejection(p.prompt_id, reason, p.text) for p in prompts if p.prompt_id not in fitting]
        sources.append((name, [p for p in prompts if p.prompt_id in fitting], rows))

    # State: all that an update changes, besides the rollouts
    state = Checkpoint(model, value_model, optimizers, reward, torch.Generator().manual_seed(settings.seed))
    state.kl_coefficient, state.batch_tokens = settings.kl_coefficient, compute.batch_tokens
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
        for update, metrics in enumerate(state.history if world.first else ()):
            log(metrics, update)
    saved = time.monotonic()

    for update in range(len(state.history), settings.updates):
        if state.stopped:
            break
        for optimizer, (_, rate) in zip(optimizers, trained, strict=True):
            optimizer.param_groups[0]["lr"] = rate * (1.0 - update / settings.updates)

        # Rollouts. The seed's round counts rollouts, for a short list of prompts repeats within one update.
        clock = [time.perf_counter()]
        drawn = [
            p for name, prompts, rows in sources for p in drawn_prompts(prompts, settings.seed, name, update, rows)
        ]
        first = update * settings.rollouts
        seeds = [draw_seed(prompt.prompt_id, settings.seed, "ppo", first + i) for i, prompt in enumerate(drawn)]
        with half:
            rollouts, texts = sample_rollouts(local, drawn, encoded, seeds, settings, world)
        clock.append(time.perf_counter())

        # Scores, log-probabilities, values; advantages
        raw = shared_scores(reward, drawn, texts, world)
        if reward.mean is None:
            reward.fit(raw)
        mask, lengths = rollouts.mask, rollouts.mask.sum(dim=1)
        found = reward.normalised(raw)
        shift, scale = (torch.full((settings.rollouts,), value) for value in (0.0, 1.0))
        shift[harmful_rows:], scale[harmful_rows:] = state.aligned(0, reward, found, harmful_rows)
        normalised = (torch.from_numpy(found).float() - shift) / scale
        scores = ppo_math.final_scores(normalised, rollouts.finished, settings.score_clip, settings.missing_eos_penalty)
        scores -= settings.length_penalty * lengths

        def read(batch_tokens: int, rollouts: Rollouts = rollouts) -> float:
            batches = micro_batches(rollouts, world.share(range(settings.rollouts)), batch_tokens, answer_tokens)
            with half:
                return measure(rollouts, batches, model, reference, value_model, settings.temperature)

        entropy, state.batch_tokens = in_halves(read, state.batch_tokens)
        rollouts.complete(world)
        kl = ppo_math.k1(rollouts.logprobs, rollouts.reference_logprobs)
        paid = kl if settings.kl_estimator == "k1" else ppo_math.k3(rollouts.logprobs, rollouts.reference_logprobs)
        rewards = ppo_math.token_rewards(scores, paid, mask, state.kl_coefficient)
        # The value model has the scale of the scores as they are before they are aligned, on which it started.
        values = (rollouts.values - shift[:, None]) / scale[:, None] * mask
        advantages, returns = ppo_math.advantages_and_returns(
            rewards, values, mask, settings.gamma, settings.gae_lambda
        )
        rollouts.returns = (returns * scale[:, None] + shift[:, None]) * mask
        rollouts.advantages = ppo_math.whiten(advantages, mask)
        clock.append(time.perf_counter())

        measured = state.measured_weights(settings)

        # Passes over the rollouts, each in new minibatches (optimiser steps) of length buckets (forward passes)
        steps: list[dict[str, float]] = []
        model.train(compute.gradient_checkpointing)
        value_model.train(compute.gradient_checkpointing)
        for _ in range(settings.epochs):
            order = torch.randperm(settings.rollouts, generator=state.shuffle).tolist()
            for part in range(settings.minibatches):
                if not (rows := order[part :: settings.minibatches]):
                    continue

                total = int(mask[rows].sum())

                def gradients(
                    batch_tokens: int, rollouts: Rollouts = rollouts, rows: list[int] = rows, total: int = total
                ) -> Tensor:
                    for optimizer in optimizers:
                        optimizer.zero_grad(set_to_none=True)
                    batches = micro_batches(rollouts, world.share(rows), batch_tokens, answer_tokens)
                    with half:
                        return add_gradients(rollouts, batches, model, value_model, settings, total)

                sums, state.batch_tokens = in_halves(gradients, state.batch_tokens)
                world.sum_gradients((model, value_model))
                stats = dict(zip(STATISTICS, (world.sum(sums) / total).tolist(), strict=True))
                norms = [nn.utils.clip_grad_norm_(m.parameters(), settings.max_grad_norm) for m, _ in trained]
                if all(math.isfinite(float(norm)) for norm in norms):
                    for optimizer in optimizers:
                        optimizer.step()
                    steps.append(stats)
                    state.skipped_in_a_row = 0
                else:
                    state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
                    if state.skipped_in_a_row == MAX_SKIPPED_STEPS:
                        raise TrainingError(
                            f"PPO update {update}: gradients were not finite in {MAX_SKIPPED_STEPS} steps in a row; "
                            f"lower ppo_policy.learning_rate ({settings.learning_rate}) or value_learning_rate"
                        )
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        model.eval()
        value_model.eval()
        clock.append(time.perf_counter())

        # Metrics and rows
        tokens = sum(len(ids) for ids in rollouts.prompt_ids) + int(lengths.sum())
        kl_sums = (kl * mask).sum(dim=1)
        metrics = {
            "reward": float(rewards.sum(dim=1).mean()),
            "score": float(scores.mean()),
            "score_raw": float(raw.mean()),
            "clipped_score_share": float((normalised.abs() > settings.score_clip).float().mean()),
            "kl": float(kl_sums.mean()),
            "kl_coefficient": state.kl_coefficient,
            "entropy": float(world.sum(torch.tensor(entropy))) / int(lengths.sum()),
            "explained_variance": ppo_math.explained_variance(rollouts.values[mask], rollouts.returns[mask]),
            "length": float(lengths.float().mean()),
            "boilerplate": boilerplate([prompt.prompt_id for prompt in drawn], texts),
            "no_eos_share": float((~rollouts.finished).float().mean()),
            "skipped_steps": float(state.skipped),
            "seconds_rollout": clock[1] - clock[0],
            "seconds_score": clock[2] - clock[1],
            "seconds_train": clock[3] - clock[2],
            "tokens_per_second_update": tokens / (clock[3] - clock[0]),
        }
        if steps:
            metrics |= {name: sum(stats[name] for stats in steps) / len(steps) for name in steps[0]}
        if heldout:
            others = []
            for number, other in enumerate(heldout, 1):
                found = other.normalised(shared_scores(other, drawn, texts, world))
                moved, times = state.aligned(number, other, found, harmful_rows)
                found[harmful_rows:] = (found[harmful_rows:] - moved) / times
                others.append(float(found.mean()))
            metrics["heldout_score"] = sum(others) / len(others)
        if world.first:
            log(metrics, update)
        state.history.append(metrics)
        columns = zip(drawn, texts, scores.tolist(), kl_sums.tolist(), lengths.tolist(), strict=True)
        for prompt, text, earned, answer_kl, count in columns:
            row = {"prompt_id": prompt.prompt_id, "update": update, "text": text, "score": earned, "kl": answer_kl}
            state.rows.append(row | {"tokens": count})
        if settings.kl_target is not None:
            state.kl_coefficient = ppo_math.adapted_coefficient(
                state.kl_coefficient, metrics["kl"], settings.kl_target, settings.rollouts, settings.kl_horizon
            )
        if settings.guards != "off":
            state.keep_best(settings, measured)
            fired = {finding.guard for finding in state.findings}
            state.findings += [one for one in findings(state.history, settings) if one.guard not in fired]
            state.stopped = settings.guards == "stop" and bool(state.findings)
        if checkpoint is not None and world.first and time.monotonic() - saved >= compute.checkpoint_seconds:
            state.save(checkpoint)
            saved = time.monotonic()

    if checkpoint is not None and world.first:
        state.save(checkpoint)
    kept = state.restore_best() if state.stopped else len(state.history)
    if world.first:
        (model.merge_and_unload() if settings.lora_rank else model).save_pretrained(output)
        local.tokenizer.save_pretrained(output)
    return PpoResult(summary(state.history, kept), state.rows, rejected, state.findings, kept)
