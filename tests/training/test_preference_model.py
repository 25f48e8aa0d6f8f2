"""The preference model: its loss, its scores under padding, what a training run does, and what it refuses."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid

from rlaif_assets.records import Message, PreferenceExample
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.training import preference_model as pm
from rlaif_assets.training.errors import TrainingError
from tests.tiny_models import KINDS, Kind, tiny_model

COMPUTE = ComputeSettings(device="cpu", threads=1, batch_tokens=1024, progress="none")
KIND_ANSWERS = ("Please water them early.", "I would gladly explain how to do it.", "Look at the soil first.")
RUDE_ANSWERS = ("I will not help with that.", "Break the window, hurt a person.", "I can't help with breaking.")


def make_examples(count: int, source: str = "ai", p_a: float = 0.9) -> list[PreferenceExample]:
    """Pairs of different lengths; one side is kind, the other rude, and the kind side has probability `p_a`."""
    examples = []
    for i in range(count):
        question: Message = {"role": "user", "content": f"How do I water {i} plants" + " on the balcony" * (i * 3 % 7)}
        kind, rude = KIND_ANSWERS[i % 3], RUDE_ANSWERS[i // 3 % 3] * (1 + i % 2)
        a, b, p = (kind, rude, p_a) if i % 2 else (rude, kind, 1 - p_a)
        examples.append(PreferenceExample(f"{source}{i}", (question,), a, b, p, source))
    return examples


def train(start: Path, output: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "train": make_examples(48),
        "heldout": make_examples(7, "ai") + make_examples(5, "human", p_a=1.0),
        "epochs": 4,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "max_length": 256,
        "seed": 1,
        "center_coefficient": 0.0,
        "compute": COMPUTE,
        "log": lambda metrics, step: None,
    } | changes
    return pm.train_preference_model(start, output=output, **arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(llama, folder)
    return folder


# The loss


def test_loss_is_the_soft_cross_entropy() -> None:
    a, b, p, w = [1.0, -0.5, 2.0], [0.0, 0.25, -3.0], [0.7, 0.2, 0.5], [1.0, 2.0, 0.5]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [
        wi * (-(pi * math.log(sigmoid(ai - bi)) + (1 - pi) * math.log(sigmoid(bi - ai))) + 0.01 * (ai + bi) ** 2)
        for ai, bi, pi, wi in zip(a, b, p, w, strict=True)
    ]
    loss = pm.preference_loss(*map(torch.tensor, (a, b, p, w)), center_coefficient=0.01)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_hard_labels_give_the_loss_of_trl() -> None:
    """TRL's RewardTrainer: -logsigmoid(chosen - rejected).mean() + c * mean((chosen + rejected)^2)."""
    chosen, rejected = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)) * 5
    trl = -logsigmoid(chosen - rejected).mean() + 0.01 * ((chosen + rejected) ** 2).mean()
    one = torch.ones(20)
    torch.testing.assert_close(pm.preference_loss(chosen, rejected, one, one, 0.01).mean(), trl)
    torch.testing.assert_close(pm.preference_loss(rejected, chosen, 0 * one, one, 0.01).mean(), trl)


def test_extreme_scores_stay_finite() -> None:
    loss = pm.preference_loss(torch.tensor([1e4]), torch.tensor([-1e4]), torch.tensor([0.0]), torch.ones(1))
    assert loss.item() == pytest.approx(2e4)


# Scores and gradients


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_read_at_the_last_token_whatever_the_padding(kind: Kind, tmp_path: Path) -> None:
    model, tokenizer = pm.load_preference_model(tiny_model(kind, tmp_path), seed=0)
    eos = tokenizer.eos_token_id
    # Ends in EOS, holds EOS inside, is EOS alone, ends in the id that pads (0): a pad id can say nothing about length.
    rows = [[5, 6, 7, eos], [5, eos, eos, 9, 8, 7, eos, eos], [eos], [9, 8, 0, 0], list(range(40))]
    with torch.inference_mode():
        together = pm.sequence_scores(model, rows)
        for row, score in zip(rows, together, strict=True):
            hidden = model.base_model(input_ids=torch.tensor([row])).last_hidden_state
            torch.testing.assert_close(score, (hidden[0, -1] @ model.score.weight[0]), atol=1e-5, rtol=1e-4)


def test_pooling_by_pad_id_would_read_another_token(tmp_path: Path) -> None:
    """Why `sequence_scores` exists: with pad = EOS, transformers' own pooling stops before the end of the turn."""
    model, tokenizer = pm.load_preference_model(tiny_model("gpt_neox", tmp_path), seed=0)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    row = [5, 6, 7, tokenizer.eos_token_id]
    with torch.inference_mode():
        pooled = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(pooled, pm.sequence_scores(model, [row[:-1]]))
        assert abs(pooled - pm.sequence_scores(model, [row])).item() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_does_not_depend_on_the_micro_batches(kind: Kind, tmp_path: Path) -> None:
    model, tokenizer = pm.load_preference_model(tiny_model(kind, tmp_path), seed=0)
    examples = [replace(example, weight=0.5 + i % 3) for i, example in enumerate(make_examples(9, p_a=0.8))]
    pairs, _ = pm.encode_pairs(tokenizer, examples, 256)
    losses, gradients = [], []
    for batch_tokens in (10**6, 500, 1):
        model.zero_grad()
        losses.append(pm.batch_gradient(model, pairs, 0.01, batch_tokens))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(list(pm.length_batches([2 * pair.length for pair in pairs], 500))) not in (1, 9)
    assert losses[1:] == pytest.approx(losses[:1] * 2, abs=1e-5)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() < 1e-5 * max(1.0, gradients[0].abs().max().item())


def test_weight_scales_a_pair_and_zero_removes_it(llama: Path) -> None:
    model, tokenizer = pm.load_preference_model(llama, seed=0)
    (one, two), _ = pm.encode_pairs(tokenizer, make_examples(2), 256)
    alone = pm.batch_gradient(model, [one], 0.1, 1024)
    assert pm.batch_gradient(model, [one, replace(two, weight=0.0)], 0.1, 1024) == pytest.approx(alone / 2, rel=1e-5)
    assert pm.batch_gradient(model, [replace(one, weight=3.0)], 0.1, 1024) == pytest.approx(3 * alone, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_the_checkpoint_is_off(kind: Kind, tmp_path: Path) -> None:
    folder = tiny_model(kind, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5, "hidden_dropout": 0.5}))
    model, tokenizer = pm.load_preference_model(folder, seed=0)
    assert model.config.attention_dropout == 0.5
    pairs, _ = pm.encode_pairs(tokenizer, make_examples(4), 256)
    assert pm.batch_gradient(model, pairs, 0.0, 1024) == pm.batch_gradient(model, pairs, 0.0, 1024)


def test_fresh_head_is_drawn_by_seed_and_a_trained_one_is_kept(llama: Path, tmp_path: Path) -> None:
    heads = [pm.load_preference_model(llama, seed=seed)[0].score.weight for seed in (3, 3, 4)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    draws = torch.cat([pm.load_preference_model(llama, seed=seed)[0].score.weight[0] for seed in range(30)])
    assert draws.std().item() == pytest.approx(1 / math.sqrt(32 + 1), rel=0.1)
    model, tokenizer = pm.load_preference_model(llama, seed=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for seed in (5, None):
        assert torch.equal(pm.load_preference_model(tmp_path, seed=seed)[0].score.weight, heads[0])


def test_a_half_precision_checkpoint_is_loaded_as_float32(llama: Path, tmp_path: Path) -> None:
    model, tokenizer = pm.load_preference_model(llama, seed=0)
    model.half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {p.dtype for p in pm.load_preference_model(tmp_path, seed=None)[0].parameters()} == {torch.float32}


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_the_labels(kind: Kind, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    start = tiny_model(kind, tmp_path / "start")
    capfd.readouterr()
    metrics = train(start, tmp_path / "pm", log=lambda values, step: logged.append((step, values)))
    assert capfd.readouterr() == ("", "")
    assert metrics["steps"] == 24
    assert [step for step, _ in logged] == [10, 20, 24]
    assert logged[-1][1]["loss"] < logged[0][1]["loss"] < math.log(2)
    assert set(metrics["heldout"]) == {"ai", "human"}
    ai, human = metrics["heldout"]["ai"], metrics["heldout"]["human"]
    assert [sum(count for *_, count in found["reliability"]) for found in (ai, human)] == [7, 5]
    assert (ai["pairs"], human["pairs"]) == (7, 5)
    assert ai["accuracy"] == human["accuracy"] == 1.0
    assert ai["nll"] < math.log(2)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert ai["nll"] > entropy  # soft labels: no prediction is better than their entropy
    files = {path.name for path in (tmp_path / "pm").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_two_runs_give_the_same_weights_and_another_seed_others(llama: Path, trained: Path, tmp_path: Path) -> None:
    train(llama, tmp_path / "again")
    train(llama, tmp_path / "other", seed=2)
    first, again, other = weights(trained), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["score.weight"], other["score.weight"])


def test_token_budget_changes_nothing_but_rounding(llama: Path, tmp_path: Path) -> None:
    small = COMPUTE.model_copy(update={"batch_tokens": 100})
    arguments = {"train": make_examples(16), "epochs": 1, "learning_rate": 1e-3}
    losses = [train(llama, tmp_path / str(i), compute=c, **arguments) for i, c in enumerate((COMPUTE, small))]
    assert losses[0]["train_loss"] == pytest.approx(losses[1]["train_loss"], abs=1e-4)
    assert losses[0]["heldout"]["ai"]["nll"] == pytest.approx(losses[1]["heldout"]["ai"]["nll"], abs=1e-3)


def test_batches_are_halved_where_memory_does_not_suffice(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"train": make_examples(16), "epochs": 1, "learning_rate": 1e-3}
    whole = train(llama, tmp_path / "whole", **arguments)
    plain, refused = pm.sequence_scores, []

    def limited(model: Any, sequences: Any) -> torch.Tensor:
        """Also in the midst of a step, when a part of its gradient is there."""
        if len(sequences) > 4 or (len(refused) == 1 and len(sequences) > 2):
            refused.append(len(sequences))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, sequences)

    monkeypatch.setattr(pm, "sequence_scores", limited)
    done = train(llama, tmp_path / "done", **arguments)
    assert len(refused) > 1 and done["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-4)
    for name, weight in weights(tmp_path / "done").items():
        torch.testing.assert_close(weight, weights(tmp_path / "whole")[name], rtol=0, atol=1e-4)


def test_training_goes_on_from_a_preference_model(trained: Path, tmp_path: Path) -> None:
    """No step is taken that changes anything (learning rate 0), so held-out results show what it starts from."""
    metrics = train(trained, tmp_path, epochs=1, learning_rate=0.0)
    assert metrics["heldout"]["human"]["accuracy"] == 1.0
    assert torch.equal(weights(trained)["score.weight"], weights(tmp_path)["score.weight"])


def test_long_pairs_are_dropped_by_name(llama: Path, tmp_path: Path) -> None:
    examples = make_examples(8)
    examples[3] = replace(examples[3], response_b="very long " * 100)
    heldout = [replace(examples[0], row_id="long", response_a="very long " * 100)]
    metrics = train(llama, tmp_path, train=examples, heldout=heldout, epochs=1)
    assert metrics["dropped_row_ids"] == ["ai3", "long"]
    assert (metrics["dropped"], metrics["pairs"], metrics["heldout"]) == (2, 7, {})


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 given"),
        ([replace(e, response_a="long " * 600) for e in make_examples(2)], "2 longer than 256 tokens"),
        ([replace(make_examples(1)[0], p_a=1.2)], "pair ai0: p_a is 1.2"),
        ([replace(make_examples(1)[0], p_a=math.nan)], "pair ai0: p_a is nan"),
        ([replace(make_examples(1)[0], weight=-1.0)], "weight -1.0"),
    ],
)
def test_unusable_pairs_are_refused(
    llama: Path, tmp_path: Path, examples: list[PreferenceExample], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(llama, tmp_path / "pm", train=examples)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(llama: Path, tmp_path: Path) -> None:
    broken = tiny_model("llama", tmp_path / "broken")
    tensors = weights(broken)
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"loss nan.* at step 1 of 24"):
        train(broken, tmp_path / "pm")
    assert not (tmp_path / "pm").exists()


# The scorer


def test_scorer_keeps_order_in_any_batch(trained: Path) -> None:
    examples = make_examples(9)
    messages, responses = [e.messages for e in examples], [e.response_a for e in examples]
    large = pm.PreferenceScorer(trained, COMPUTE).scores(messages, responses)
    small = pm.PreferenceScorer(trained, COMPUTE.model_copy(update={"batch_tokens": 1})).scores(messages, responses)
    np.testing.assert_allclose(large, small, atol=1e-4)
    assert large.dtype == np.float64
    other = pm.PreferenceScorer(trained, COMPUTE).scores(messages, [e.response_b for e in examples])
    assert [bool(a > b) for a, b in zip(large, other, strict=True)] == [e.p_a > 0.5 for e in examples]
    assert pm.PreferenceScorer(trained, COMPUTE).scores([], []).shape == (0,)


def test_scorer_halves_batches_where_memory_does_not_suffice(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = make_examples(9)
    given = [e.messages for e in examples], [e.response_a for e in examples]
    whole = pm.PreferenceScorer(trained, COMPUTE).scores(*given)
    plain = pm.sequence_scores

    def limited(model: Any, sequences: Any) -> torch.Tensor:
        if len(sequences) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, sequences)

    monkeypatch.setattr(pm, "sequence_scores", limited)
    scorer = pm.PreferenceScorer(trained, COMPUTE)
    np.testing.assert_allclose(scorer.scores(*given), whole, atol=1e-5)
    assert scorer.batch_tokens < COMPUTE.batch_tokens


def test_scorer_refuses_what_it_cannot_read(trained: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="row 1: 513 tokens"):
        pm.PreferenceScorer(trained, COMPUTE).token_scores([[1], [1] * 513])
    with pytest.raises(TrainingError, match="no score head"):
        pm.PreferenceScorer(llama, COMPUTE)
    with pytest.raises(TrainingError, match="cannot be loaded"):
        pm.PreferenceScorer(tmp_path / "nothing", COMPUTE)


def test_normalisation_is_stored_beside_the_weights(trained: Path) -> None:
    scorer = pm.PreferenceScorer(trained, COMPUTE)
    (trained / pm.NORMALISATION_FILE).unlink(missing_ok=True)
    with pytest.raises(TrainingError, match="materialize reward_model again"):
        scorer.normalisation()
    scores = np.array([1.0, 3.0, 5.0, 7.0])
    assert pm.write_normalisation(trained, scores) == {"mean": 4.0, "spread": pytest.approx(math.sqrt(5))}
    assert scorer.normalisation() == (4.0, pytest.approx(math.sqrt(5)))


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0], [1.0, math.nan]])
def test_scores_without_spread_have_no_normalisation(tmp_path: Path, scores: list[float]) -> None:
    with pytest.raises(TrainingError, match="cannot normalise"):
        pm.write_normalisation(tmp_path, np.array(scores))
    assert not list(tmp_path.iterdir())


# Metrics and batches


def test_metrics_of_hand_computed_predictions() -> None:
    """Predicted 0.9, 0.2, 0.6, 0.5 for labels 1.0, 0.4, 0.3, 0.52 (the last one decides nothing)."""
    p, labels = np.array([0.9, 0.2, 0.6, 0.5]), np.array([1.0, 0.4, 0.3, 0.52])
    metrics = pm.preference_metrics(np.log(p / (1 - p)), labels)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.3**2 + 0.02**2) / 4)
    nll = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    assert metrics["nll"] == pytest.approx(nll)
    # Confidences 0.9, 0.8, 0.6, 0.5 fall in four bins; the predicted sides hold 1.0, 0.6, 0.3 and 0.52 of the label.
    assert metrics["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.02) / 4)
    swapped = pm.preference_metrics(-np.log(p / (1 - p))[:3], 1 - labels[:3])
    unswapped = pm.preference_metrics(np.log(p / (1 - p))[:3], labels[:3])
    assert swapped == pytest.approx(unswapped)


def test_metrics_without_a_decisive_pair_and_at_the_extremes() -> None:
    with np.errstate(all="raise", under="ignore"):
        metrics = pm.preference_metrics(np.array([800.0, -800.0, 0.0]), np.array([0.5, 0.5, 0.5]))
    assert metrics["accuracy"] is None
    assert metrics["nll"] == pytest.approx((400 + 400 + math.log(2)) / 3)


def test_an_epoch_visits_every_pair_once_in_batches_of_similar_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 200, (1000,), generator=generator).tolist()
    epochs = [pm.epoch_batches(lengths, 16, generator) for _ in range(2)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(1000))
        assert max(map(len, batches)) == 16
        padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
        assert padded < 1.1 * sum(lengths)
        firsts = [lengths[batch[0]] for batch in batches]
        assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))
    assert epochs[0] != epochs[1]


def test_learning_rate_rises_then_falls_to_the_last_step() -> None:
    factors = [pm.learning_rate_factor(step, 20) for step in range(20)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[-1] == pytest.approx(1 / 18)
    assert all(a > b for a, b in pairwise(factors[2:]))
    assert [pm.learning_rate_factor(step, 1) for step in (0, 1)] == [1.0, 0.0]
