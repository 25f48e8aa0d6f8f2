"""Step 4: the preference model (PM), trained and used. Pre-training examples are made in `pmp`, labels in `feedback`.

A PM is a causal decoder with one linear `score` head, read at the last token of a conversation. Constitutional AI 4.2,
with soft labels as in Lee et al. 2023: the target of sigma(r_a - r_b) is p_a.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

from rlaif_assets.evaluation.calibration import brier, ece, nll, reliability
from rlaif_assets.language_models.batching import in_halves, length_batches, pad
from rlaif_assets.language_models.chat import encode_conversation
from rlaif_assets.language_models.local import choose_device
from rlaif_assets.records import Message, PreferenceExample
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.training.errors import TrainingError

MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.1
LOG_STEPS = 10
BUCKET_BATCHES = 20  # batches cut from one length-sorted stretch of the shuffled data
DECISIVE = 0.05  # accuracy counts pairs with |p_a - 0.5| above this
NORMALISATION_FILE = "score_normalisation.json"


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a conversation with each of its two responses, ending in the end-of-turn token."""

    a: list[int]
    b: list[int]
    p_a: float
    weight: float
    source: str

    @property
    def length(self) -> int:
        return max(len(self.a), len(self.b))


def train_preference_model(
    start: Path,
    train: Sequence[PreferenceExample],
    heldout: Sequence[PreferenceExample],
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    max_length: int,
    seed: int,
    center_coefficient: float,
    output: Path,
    compute: ComputeSettings,
    log: Callable[[dict[str, float], int], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains a PM from a causal LM's folder, or from another PM's, and saves it in `output` with its tokenizer.

    AdamW, linear warm-up and decay, gradient clipping, no dropout, float32 weights (with `compute.dtype` bfloat16 the
    passes compute in it). `batch_size` counts pairs per optimiser step; `compute.batch_tokens` splits a step into
    forward passes and changes nothing but rounding. A pair with a side
    longer than `max_length` tokens, or than the model's context, is dropped and named in the metrics. `progress` gets
    ("training", optimiser steps done, all of them).

    Returns steps, tokens (without padding), train_loss (mean of the last epoch), dropped, dropped_row_ids and
    heldout (see `heldout_metrics`). Raises TrainingError for data without a usable pair, labels
    outside [0, 1], or a loss that is not finite (nothing is saved then); ModelError where no batch fits into memory.
    """
    if compute.threads > 0:
        torch.set_num_threads(compute.threads)
    model, tokenizer = load_preference_model(start, seed)
    model.to(choose_device(compute))
    limit = min(max_length, context_length(model))
    pairs, dropped = encode_pairs(tokenizer, train, limit)
    heldout_pairs, heldout_dropped = encode_pairs(tokenizer, heldout, limit)
    if not pairs:
        raise TrainingError(
            f"no pair to train the preference model on: {len(train)} given, {len(dropped)} longer than {limit} tokens; "
            "raise max_length or give more pairs"
        )

    half = torch.autocast(model.device.type, torch.bfloat16, enabled=compute.dtype == "bfloat16")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    steps_per_epoch = math.ceil(len(pairs) / batch_size)
    total = max(1, round(epochs * steps_per_epoch))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total))
    lengths = [pair.length for pair in pairs]
    losses: list[float] = []
    tokens, step, batch_tokens = 0, 0, compute.batch_tokens
    if progress is not None:
        progress("training", 0, total)
    while step < total:
        for indices in epoch_batches(lengths, batch_size, generator)[: total - step]:
            batch = [pairs[index] for index in indices]

            def gradient(batch_tokens: int, batch: Sequence[EncodedPair] = batch) -> float:
                optimizer.zero_grad()
                with half:
                    return batch_gradient(model, batch, center_coefficient, batch_tokens)

            loss, batch_tokens = in_halves(gradient, batch_tokens)
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"preference model: loss {loss}, gradient norm {norm} at step {step + 1} of {total}; "
                    "lower learning_rate, and check the starting weights"
                )
            rate = float(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
            step += 1
            tokens += sum(len(pair.a) + len(pair.b) for pair in batch)
            losses.append(loss)
            if step % LOG_STEPS == 0 or step == total:
                recent = losses[-LOG_STEPS:]
                log({"loss": sum(recent) / len(recent), "grad_norm": norm, "learning_rate": rate}, step)
            if progress is not None:
                progress("training", step, total)

    optimizer.zero_grad(set_to_none=True)
    metrics = {
        "steps": total,
        "tokens": tokens,
        "train_loss": float(np.mean(losses[-steps_per_epoch:])),
        "pairs": len(pairs),
        "dropped": len(dropped) + len(heldout_dropped),
        "dropped_row_ids": dropped + heldout_dropped,
        "heldout": heldout_metrics(model, heldout_pairs, batch_tokens),
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return metrics


class PreferenceScorer:
    """A trained PM that scores responses. Scores have no unit; `normalisation` tells their mean and spread."""

    def __init__(self, folder: Path, compute: ComputeSettings) -> None:
        """Raises TrainingError when the folder holds no PM (a causal LM has no score head)."""
        self.folder = folder
        self.batch_tokens = compute.batch_tokens
        if compute.threads > 0:
            torch.set_num_threads(compute.threads)
        self.model, self.tokenizer = load_preference_model(folder, seed=None)
        self.model.to(choose_device(compute)).requires_grad_(False)
        self.limit = context_length(self.model)

    def scores(self, messages: Sequence[Sequence[Message]], responses: Sequence[str]) -> np.ndarray:
        """Scores [n] (float64) of each conversation's response, in the order given.

        A conversation that is longer than the model's context loses its beginning.
        """
        return self.token_scores(
            [
                encode_conversation(self.tokenizer, list(conversation), response)[0][-self.limit :]
                for conversation, response in zip(messages, responses, strict=True)
            ]
        )

    def token_scores(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores [n] (float64) of token sequences, each read at its last token. Batched by length, order kept."""
        for row, sequence in enumerate(sequences):
            if not 0 < len(sequence) <= self.limit:
                raise TrainingError(
                    f"cannot score row {row}: {len(sequence)} tokens, and {self.folder.name} reads 1 to {self.limit}"
                )
        scores = np.zeros(len(sequences))

        def score(batch_tokens: int) -> None:
            for rows in length_batches([len(sequence) for sequence in sequences], batch_tokens):
                scores[rows] = sequence_scores(self.model, [sequences[row] for row in rows]).cpu().numpy()

        with torch.inference_mode():
            _, self.batch_tokens = in_halves(score, self.batch_tokens)
        return scores

    def normalisation(self) -> tuple[float, float]:
        """Mean and spread that `write_normalisation` stored beside the weights."""
        path = self.folder / NORMALISATION_FILE
        if not path.is_file():
            raise TrainingError(f"{self.folder.name} has no {NORMALISATION_FILE}: materialize reward_model again")
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["mean"], stored["spread"]


def write_normalisation(folder: Path, scores: np.ndarray) -> dict[str, float]:
    """Stores mean and spread (population standard deviation) of a PM's scores in its folder, and returns them.

    Raises TrainingError where the scores do not vary or are not finite: no normalisation exists.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size < 2 or not np.isfinite(values).all() or values.std() == 0.0:
        raise TrainingError(f"cannot normalise {values.size} scores: they must be finite and differ from each other")
    stored = {"mean": float(values.mean()), "spread": float(values.std())}
    (folder / NORMALISATION_FILE).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    return stored


def load_preference_model(folder: Path, seed: int | None) -> tuple[Any, PreTrainedTokenizerFast]:
    """The float32 model with one score, and its tokenizer. It is in evaluation mode: no dropout, in training too.

    Where the folder is a causal LM's, the score head is drawn from N(0, 1/(d+1)) by `seed` (Huang et al. 2024); with
    seed None that is a TrainingError, as are missing or pickled weights and a model without a linear score head.
    """
    disable_progress_bar()
    level = get_verbosity()
    set_verbosity_error()  # the report on missing and unexpected weights is read below instead
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{folder.name} cannot be loaded as a preference model: {error}") from error
    finally:
        set_verbosity(level)
    missing = set(report["missing_keys"])
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or missing - {"score.weight"}:
        raise TrainingError(f"{folder.name} cannot become a preference model: no weights for {sorted(missing)}")
    if missing:
        if seed is None:
            raise TrainingError(f"{folder.name} is not a preference model: it has no score head")
        draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.data.copy_(draw / math.sqrt(head.in_features + 1))
    return model.eval(), tokenizer


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[PreferenceExample], limit: int
) -> tuple[list[EncodedPair], list[str]]:
    """Encoded pairs in order, and the row ids of pairs with a side longer than `limit` tokens."""
    pairs, dropped = [], []
    for example in examples:
        if not (0.0 <= example.p_a <= 1.0 and example.weight >= 0.0):
            raise TrainingError(
                f"pair {example.row_id}: p_a is {example.p_a} and weight {example.weight}; "
                "p_a must lie in [0, 1] and weight must not be negative"
            )
        messages = list(example.messages)
        a = encode_conversation(tokenizer, messages, example.response_a)[0]
        b = encode_conversation(tokenizer, messages, example.response_b)[0]
        if max(len(a), len(b)) > limit:
            dropped.append(example.row_id)
        else:
            pairs.append(EncodedPair(a, b, example.p_a, example.weight, example.source))
    return pairs, dropped


def preference_loss(
    scores_a: torch.Tensor,
    scores_b: torch.Tensor,
    p_a: torch.Tensor,
    weight: torch.Tensor,
    center_coefficient: float = 0.0,
) -> torch.Tensor:
    """Loss per pair [n] of scores [n]: w (-[p log s(d) + (1-p) log s(-d)] + c (r_a + r_b)^2), d = r_a - r_b.

    The first term is the cross-entropy of Constitutional AI 4.2 with soft labels; the second keeps scores near zero.
    """
    loss = F.binary_cross_entropy_with_logits(scores_a - scores_b, p_a, reduction="none")
    return weight * (loss + center_coefficient * (scores_a + scores_b).square())


def batch_gradient(model: Any, batch: Sequence[EncodedPair], center_coefficient: float, batch_tokens: int) -> float:
    """Adds the gradient of the batch's mean loss per pair, and returns that loss.

    Every forward pass divides by the pairs of the whole batch, so how the batch is split does not matter.
    """
    total = torch.zeros((), device=model.device)
    for rows in length_batches([2 * pair.length for pair in batch], batch_tokens):
        part = [batch[row] for row in rows]
        scores = sequence_scores(model, [pair.a for pair in part] + [pair.b for pair in part])
        p_a = torch.tensor([pair.p_a for pair in part], dtype=scores.dtype, device=scores.device)
        weight = torch.tensor([pair.weight for pair in part], dtype=scores.dtype, device=scores.device)
        loss = preference_loss(scores[: len(part)], scores[len(part) :], p_a, weight, center_coefficient)
        loss = loss.sum() / len(batch)
        loss.backward()
        total += loss.detach()
    return float(total)


def sequence_scores(model: Any, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Scores [n] of n token sequences in one right-padded forward pass.

    Read at each sequence's own last token, by its length: the pad id is never compared, so a tokenizer whose pad token
    is its end-of-turn token loses nothing (transformers' pooling would stop before it). The head computes in float32
    under autocast too: bfloat16 would round a score of 5 to steps of 0.03.
    """
    ids = pad(sequences, max(map(len, sequences)), left=False).to(model.device)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) <= last[:, None]).long()
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    final = hidden[torch.arange(len(last), device=ids.device), last].float()
    with torch.autocast(ids.device.type, enabled=False):
        return model.score(final)[:, 0]


def epoch_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Row numbers of one epoch in batches of `batch_size` rows of similar length, every row once, in random order.

    Rows are shuffled, sorted by length within stretches of BUCKET_BATCHES batches, cut, and the batches shuffled again.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    stretch = batch_size * BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), stretch):
        rows = sorted(order[start : start + stretch], key=lambda row: lengths[row])
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def learning_rate_factor(step: int, total: int) -> float:
    """Linear warm-up over the first tenth of `total` steps, then linear decay to zero after the last one."""
    warmup = max(1, round(WARMUP_SHARE * total))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def heldout_metrics(model: Any, pairs: Sequence[EncodedPair], batch_tokens: int) -> dict[str, dict[str, Any]]:
    """{source: `preference_metrics` and reliability ([confidence, agreement, count] per bin)} of held-out pairs."""
    logits = np.zeros(len(pairs))

    def read(batch_tokens: int) -> None:
        for rows in length_batches([2 * pair.length for pair in pairs], batch_tokens):
            part = [pairs[row] for row in rows]
            scores = sequence_scores(model, [pair.a for pair in part] + [pair.b for pair in part])
            logits[rows] = (scores[: len(part)] - scores[len(part) :]).cpu().numpy()

    with torch.inference_mode():
        in_halves(read, batch_tokens)
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        by_source[pair.source].append(row)
    metrics: dict[str, dict[str, Any]] = {}
    for source, rows in sorted(by_source.items()):
        p_a = np.array([pairs[row].p_a for row in rows])
        bins = [list(astuple(found)) for found in reliability(sigmoid(logits[rows]), p_a)]
        metrics[source] = {**preference_metrics(logits[rows], p_a), "reliability": bins}
    return metrics


def preference_metrics(logits: np.ndarray, p_a: np.ndarray) -> dict[str, float | int | None]:
    """How well sigma(logits) [n] predicts the soft labels p_a [n].

    accuracy: share of right sides among decisive pairs (|p_a - 0.5| > 0.05), None without one; a tie counts half. nll:
    soft cross-entropy in nats. brier: mean (sigma - p_a)^2. ece: expected calibration error over ten equal bins of the
    confidence in the predicted side, so that swapping A and B changes nothing.
    """
    p = sigmoid(logits)
    decisive = np.abs(p_a - 0.5) > DECISIVE
    right = np.where(logits == 0, 0.5, (logits > 0) == (p_a > 0.5))
    return {
        "accuracy": float(right[decisive].mean()) if decisive.any() else None,
        "nll": nll(logits, p_a),
        "ece": ece(p, p_a),
        "brier": brier(p, p_a),
        "pairs": len(p),
    }


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))  # without overflow


def context_length(model: Any) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
