"""PPO against a preference model: rollouts, scores, advantages, updates, in one loop to be read from top to bottom.

Constitutional AI section 4.2, which takes over HH (Bai et al. 2022a) section 4.1. The arithmetic is in `ppo_math.py`;
sampling in `language_models/local.py`; the preference model in `preference_model.py`. Nothing here knows of Dagster,
MLflow or the warehouse: metrics go out through `log`, rows through the result.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.records import Prompt, Rejection
from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.store.fingerprint import draw_seed
from rlaif_assets.training import ppo_math
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.preference_model import PreferenceScorer

MAX_LOGITS = 2**27  # elements of one logits tensor: half a GiB in float32, whatever the vocabulary
MAX_SKIPPED_STEPS = 5


@dataclass(frozen=True)
class PpoResult:
    """`metrics`: means over the last tenth of the updates, and totals. `rollouts`: one row per answer, in order, with
    prompt_id, update, text, score (normalised, as rewarded), kl (nats, summed over the answer) and tokens. `rejected`:
    the prompts that were never drawn because they are too long."""

    metrics: dict[str, float]
    rollouts: list[dict[str, Any]]
    rejected: list[Rejection]


@dataclass
class Rollouts:
    """N answers of one update, padded to the longest of T tokens; `mask` is True on an answer's tokens."""

    prompt_ids: list[list[int]]
    tokens: Tensor  # (N, T) int64
    mask: Tensor  # (N, T) bool
    finished: Tensor  # (N,) bool: ended by itself
    device: torch.device  # of the models; the tensors here stay on the CPU
    logprobs: Tensor = field(init=False)  # (N, T) of the policy that sampled, at the sampling temperature
    reference_logprobs: Tensor = field(init=False)  # (N, T) of the frozen start, at the same temperature
    values: Tensor = field(init=False)  # (N, T) before each token
    advantages: Tensor = field(init=False)  # (N, T) whitened
    returns: Tensor = field(init=False)  # (N, T)

    def lengths(self) -> list[int]:
        """Tokens of prompt and answer that a forward pass reads (the last answer token is never read)."""
        return [len(ids) + int(n) - 1 for ids, n in zip(self.prompt_ids, self.mask.sum(dim=1).tolist(), strict=True)]

    def flat(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """The (N, T) tensor's entries on the answer tokens of `rows`, row by row, on the models' device."""
        rows = list(rows)
        return values[rows][self.mask[rows]].to(self.device)

    def put(self, values: Tensor, rows: Sequence[int], flat: Tensor) -> None:
        """The inverse of `flat`: writes into the (N, T) tensor."""
        rows = list(rows)
        part = torch.zeros(len(rows), values.shape[1])
        part[self.mask[rows]] = flat.to(part.device)
        values[rows] = part


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


def start_value_model(policy: Any, tokenizer: Any, scorer: PreferenceScorer) -> ValueModel:
    """A copy of the preference model and its head where the tokenizers agree, else of the policy with a zero head.

    The head is rescaled to the normalised score, so that values start on the scale of the rewards.
    """
    if scorer.tokenizer.get_vocab() != tokenizer.get_vocab():
        return ValueModel(copy.deepcopy(policy.base_model), policy.config.hidden_size)
    preference_model: Any = scorer.model
    value_model = ValueModel(copy.deepcopy(preference_model.base_model), preference_model.config.hidden_size)
    shift, one = scorer.normalised(np.array([0.0, 1.0])).tolist()
    with torch.no_grad():
        value_model.head.weight.copy_(preference_model.score.weight * (one - shift))
        value_model.head.bias.fill_(shift)
    return value_model


def prompt_order(prompts: Sequence[Prompt], seed: int, purpose: str) -> Iterator[Prompt]:
    """Every prompt once per epoch, for ever, in an order drawn from the prompts' ids and the seed."""
    epoch = 0
    while prompts:
        yield from sorted(prompts, key=lambda prompt: draw_seed(prompt.prompt_id, seed, purpose, epoch))
        epoch += 1


def prompts_that_fit(prompts: Sequence[Prompt], settings: PpoPolicySettings, local: LocalModel) -> dict[str, list[int]]:
    """Token ids by prompt id of the prompts of at most `max_prompt_tokens` that leave room for a whole answer."""
    limit = min(settings.max_prompt_tokens, (local.context or math.inf) - settings.max_new_tokens)
    encoded = {prompt.prompt_id: encode_prompt(local.tokenizer, prompt.messages) for prompt in prompts}
    return {prompt_id: ids for prompt_id, ids in encoded.items() if len(ids) <= limit}


def micro_batches(rollouts: Rollouts, rows: Sequence[int], batch_tokens: int, answer_tokens: int) -> list[list[int]]:
    """Rows grouped by length, at most `batch_tokens` padded tokens and `answer_tokens` answer tokens in a group."""
    lengths, answers = rollouts.lengths(), rollouts.mask.sum(dim=1).tolist()
    groups: list[list[int]] = []
    longest = held = 0
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if not groups or longest * (len(groups[-1]) + 1) > batch_tokens or held + answers[row] > answer_tokens:
            groups.append([])
            longest, held = lengths[row], 0
        groups[-1].append(row)
        held += answers[row]
    return groups


def pack(rollouts: Rollouts, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, S) ids, padded on the right, and the (B, S) mask of positions that precede an answer token.

    No attention mask is needed: attention is causal, so no real token sees the padding behind it.
    `predicts` read row by row is in the order of `Rollouts.flat`.
    """
    lengths = rollouts.lengths()
    width = max(lengths[row] for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        prompt = rollouts.prompt_ids[row]
        input_ids[i, : len(prompt)] = torch.tensor(prompt)
        input_ids[i, len(prompt) : lengths[row]] = rollouts.tokens[row, : lengths[row] - len(prompt)]
        predicts[i, len(prompt) - 1 : lengths[row]] = True
    return input_ids.to(rollouts.device), predicts.to(rollouts.device)


def answer_logits(model: Any, input_ids: Tensor, predicts: Tensor, temperature: float) -> Tensor:
    """Flat (n, V) float32 logits at the positions of `predicts` alone, divided by the temperature.

    The hook narrows the input of the output layer, so the prompt never gets logits, in any architecture.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][predicts],))
    try:
        return model(input_ids=input_ids, use_cache=False).logits.float() / temperature
    finally:
        hook.remove()


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Flat (n,) log-probabilities of `tokens` (n,) under `logits` (n, V)."""
    return -functional.cross_entropy(logits, tokens, reduction="none")


def sample_rollouts(
    local: LocalModel, prompts: Sequence[Prompt], encoded: dict[str, list[int]], seeds: Sequence[int], settings: Any
) -> tuple[Rollouts, list[str]]:
    """One answer per prompt, and their texts."""
    answers = local.generate(
        [prompt.messages for prompt in prompts], seeds, settings.max_new_tokens, settings.temperature
    )
    tokens = torch.zeros(len(answers), max(len(answer.token_ids) for answer in answers), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, answer in enumerate(answers):
        tokens[i, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
        mask[i, : len(answer.token_ids)] = True
    finished = torch.tensor([answer.finished for answer in answers])
    prompt_ids = [encoded[prompt.prompt_id] for prompt in prompts]
    return Rollouts(prompt_ids, tokens, mask, finished, torch.device(local.device)), [answer.text for answer in answers]


def score(scorer: PreferenceScorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
    """(N,) raw scores. Text passes between the models, so their tokenizers may differ; what is too long for the
    preference model loses its beginning. Raises TrainingError for a score that is not finite."""
    scores = scorer.scores([prompt.messages for prompt in prompts], texts)
    if not np.isfinite(scores).all():
        bad = prompts[int(np.flatnonzero(~np.isfinite(scores))[0])].prompt_id
        raise TrainingError(f"the reward model's score of an answer to prompt {bad} is not finite: train it again")
    return scores


@torch.no_grad()
def measure(
    rollouts: Rollouts, batches: Sequence[Sequence[int]], model: Any, reference: Any, value_model: ValueModel, t: float
) -> float:
    """Fills in log-probabilities (both at temperature `t`) and values; returns the mean entropy per token in nats.

    The old log-probabilities come from the forward pass that training uses, not from decoding, so that the first ratio
    is 1.
    """
    rollouts.logprobs, rollouts.reference_logprobs, rollouts.values = (torch.zeros(rollouts.mask.shape) for _ in "lrv")
    entropy = 0.0
    for rows in batches:
        input_ids, predicts = pack(rollouts, rows)
        targets = rollouts.flat(rollouts.tokens, rows)
        logits = answer_logits(model, input_ids, predicts, t)
        rollouts.put(rollouts.logprobs, rows, token_logprobs(logits, targets))
        entropy += float((logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)).sum())
        logits = answer_logits(reference, input_ids, predicts, t)
        rollouts.put(rollouts.reference_logprobs, rows, token_logprobs(logits, targets))
        rollouts.put(rollouts.values, rows, value_model(input_ids, predicts))
    return entropy / int(rollouts.mask.sum())


def add_gradients(
    rollouts: Rollouts,
    batches: Sequence[Sequence[int]],
    model: Any,
    value_model: ValueModel,
    settings: PpoPolicySettings,
) -> dict[str, float]:
    """Adds the gradients of both losses over all of `batches`, and returns the mean of each statistic per token.

    Every token weighs the same: the sums are divided by the token count of all batches together, so the gradient does
    not depend on how rows are grouped.
    """
    total = sum(int(rollouts.mask[list(rows)].sum()) for rows in batches)
    sums = torch.zeros(4)
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
    names = ("policy_loss", "value_loss", "clip_fraction", "approx_kl")
    return dict(zip(names, (sums / total).tolist(), strict=True))


def summary(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the last tenth of the updates, the seconds of all, and the number of updates."""
    last = history[-max(1, len(history) // 10) :]
    means = {name: sum(m.get(name, 0.0) for m in last) / len(last) for name in history[-1]} if history else {}
    for name in ("seconds_rollout", "seconds_score", "seconds_train"):
        means[name] = sum(metrics[name] for metrics in history)
    return means | {"updates": float(len(history))}


def train_ppo(
    policy: Path,
    reward_model: Path,
    red_team: Sequence[Prompt],
    helpful: Sequence[Prompt],
    settings: PpoPolicySettings,
    output: Path,
    compute: ComputeSettings,
    log: Callable[[dict[str, float], int], None],
) -> PpoResult:
    """Trains the policy in folder `policy` (SL-CAI, also the KL's reference) and saves it to `output`.

    `red_team` and `helpful` are training prompts; the caller leaves dev and test out. `harmful_share` of each update's
    rollouts come from `red_team`; a prompt comes again only after all others of its list. Everything is float32. On
    the CPU the same inputs, seed and thread count give the same weights, bit for bit.

    Raises TrainingError: no usable prompt, a score that is not a number, five steps in a row without finite gradients.
    """
    # Models. All stay in evaluation mode, which turns dropout off: with it, the first ratio would not be 1.
    local = load_model(policy, compute)
    model = local.model.float().eval().requires_grad_(True)
    reference = copy.deepcopy(model).requires_grad_(False)
    scorer = PreferenceScorer(reward_model, compute)
    value_model = start_value_model(model, local.tokenizer, scorer).to(local.device).eval().requires_grad_(True)
    trained = ((model, settings.learning_rate), (value_model, settings.value_learning_rate))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=rate, eps=1e-5, weight_decay=0.0) for m, rate in trained]
    answer_tokens = max(1, MAX_LOGITS // model.config.get_text_config().vocab_size)

    # Prompts
    harmful_rows = round(settings.rollouts * settings.harmful_share)
    sources: list[tuple[Iterator[Prompt], int]] = []
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
        sources.append((prompt_order([p for p in prompts if p.prompt_id in fitting], settings.seed, name), rows))

    shuffle = torch.Generator().manual_seed(settings.seed)
    rows_out: list[dict[str, Any]] = []
    history: list[dict[str, float]] = []
    skipped = skipped_in_a_row = 0

    for update in range(settings.updates):
        for optimizer, (_, rate) in zip(optimizers, trained, strict=True):
            optimizer.param_groups[0]["lr"] = rate * (1.0 - update / settings.updates)

        # Rollouts. The seed's round counts rollouts, for a short list of prompts repeats within one update.
        clock = [time.perf_counter()]
        drawn = [next(order) for order, rows in sources for _ in range(rows)]
        first = update * settings.rollouts
        seeds = [draw_seed(prompt.prompt_id, settings.seed, "ppo", first + i) for i, prompt in enumerate(drawn)]
        rollouts, texts = sample_rollouts(local, drawn, encoded, seeds, settings)
        clock.append(time.perf_counter())

        # Scores, log-probabilities, values; advantages
        raw = score(scorer, drawn, texts)
        normalised = torch.from_numpy(scorer.normalised(raw)).float()
        scores = ppo_math.final_scores(normalised, rollouts.finished, settings.score_clip, settings.missing_eos_penalty)
        batches = micro_batches(rollouts, range(settings.rollouts), compute.batch_tokens, answer_tokens)
        entropy = measure(rollouts, batches, model, reference, value_model, settings.temperature)
        mask = rollouts.mask
        kl = ppo_math.k1(rollouts.logprobs, rollouts.reference_logprobs)
        rewards = ppo_math.token_rewards(scores, kl, mask, settings.kl_coefficient)
        advantages, rollouts.returns = ppo_math.advantages_and_returns(
            rewards, rollouts.values, mask, settings.gamma, settings.gae_lambda
        )
        rollouts.advantages = ppo_math.whiten(advantages, mask)
        clock.append(time.perf_counter())

        # Passes over the rollouts, each in new minibatches (optimiser steps) of length buckets (forward passes)
        steps: list[dict[str, float]] = []
        for _ in range(settings.epochs):
            order = torch.randperm(settings.rollouts, generator=shuffle).tolist()
            for part in range(settings.minibatches):
                rows = order[part :: settings.minibatches]
                if not rows:
                    continue
                batches = micro_batches(rollouts, rows, compute.batch_tokens, answer_tokens)
                stats = add_gradients(rollouts, batches, model, value_model, settings)
                norms = [nn.utils.clip_grad_norm_(m.parameters(), settings.max_grad_norm) for m, _ in trained]
                if all(math.isfinite(float(norm)) for norm in norms):
                    for optimizer in optimizers:
                        optimizer.step()
                    steps.append(stats)
                    skipped_in_a_row = 0
                else:
                    skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
                    if skipped_in_a_row == MAX_SKIPPED_STEPS:
                        raise TrainingError(
                            f"PPO update {update}: gradients were not finite in {MAX_SKIPPED_STEPS} steps in a row; "
                            f"lower ppo_policy.learning_rate ({settings.learning_rate}) or value_learning_rate"
                        )
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
        clock.append(time.perf_counter())

        # Metrics and rows
        lengths = mask.sum(dim=1)
        read = sum(len(ids) for ids in rollouts.prompt_ids) + int(lengths.sum())
        kl_sums = (kl * mask).sum(dim=1)
        metrics = {
            "reward": float(rewards.sum(dim=1).mean()),
            "score": float(scores.mean()),
            "score_raw": float(raw.mean()),
            "kl": float(kl_sums.mean()),
            "entropy": entropy,
            "explained_variance": ppo_math.explained_variance(rollouts.values[mask], rollouts.returns[mask]),
            "length": float(lengths.float().mean()),
            "no_eos_share": float((~rollouts.finished).float().mean()),
            "skipped_steps": float(skipped),
            "seconds_rollout": clock[1] - clock[0],
            "seconds_score": clock[2] - clock[1],
            "seconds_train": clock[3] - clock[2],
            "tokens_per_second": read / (clock[3] - clock[0]),
        }
        if steps:
            metrics |= {name: sum(stats[name] for stats in steps) / len(steps) for name in steps[0]}
        log(metrics, update)
        history.append(metrics)
        columns = zip(drawn, texts, scores.tolist(), kl_sums.tolist(), lengths.tolist(), strict=True)
        for prompt, text, earned, answer_kl, count in columns:
            row = {"prompt_id": prompt.prompt_id, "update": update, "text": text, "score": earned, "kl": answer_kl}
            rows_out.append(row | {"tokens": count})

    model.save_pretrained(output)
    local.tokenizer.save_pretrained(output)
    return PpoResult(summary(history), rows_out, rejected)
