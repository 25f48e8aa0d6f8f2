"""PPO on tiny random models: the invariants of its batches and gradients, what it learns, and what it refuses."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlaif_assets.language_models.chat import encode_conversation, encode_prompt
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Message, Prompt
from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.training import ppo, ppo_math
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.preference_model import PreferenceScorer, load_preference_model
from rlaif_assets.training.rewards import Reward, preference_reward
from rlaif_assets.training.rollouts import Rollouts, answer_logits, micro_batches, pack, sample_rollouts, token_logprobs
from rlaif_assets.training.world import World
from tests.tiny_models import KINDS, Kind, tiny_model

COMPUTE = ComputeSettings(device="cpu", threads=1, batch_tokens=256, progress="none")
SETTINGS = PpoPolicySettings(
    updates=2, rollouts=6, epochs=2, max_new_tokens=8, learning_rate=1e-3, value_learning_rate=1e-3, seed=3
)
COLUMNS = ["prompt_id", "update", "text", "score", "kl", "tokens"]


def make_prompts(source: str, count: int) -> list[Prompt]:
    """Prompts of very different lengths."""
    texts = [f"Where is the {source} number {i}" + " and the next one" * (i * 3 % 7) + "?" for i in range(count)]
    return [
        Prompt(f"{source}-{i}", (Message(role="user", content=text),), "train", "unknown", source)
        for i, text in enumerate(texts)
    ]


RED_TEAM, HELPFUL = make_prompts("red", 5), make_prompts("helpful", 4)


def tiny_reward_model(kind: Kind, folder: Path, mean: float = 0.5, spread: float = 2.0) -> Path:
    model, tokenizer = load_preference_model(tiny_model(kind, folder / "start", seed=7), seed=1)
    model.save_pretrained(folder / "pm")
    tokenizer.save_pretrained(folder / "pm")
    (folder / "pm" / "score_normalisation.json").write_text(json.dumps({"mean": mean, "spread": spread}))
    return folder / "pm"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def equal_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Trained:
    """One run of `train_ppo` with its log."""

    def __init__(self, policy: Path, reward: Path | Reward, output: Path, **changes: Any) -> None:
        red_team, helpful = changes.pop("red_team", RED_TEAM), changes.pop("helpful", HELPFUL)
        self.output = output
        compute = changes.pop("compute", COMPUTE)
        heldout = changes.pop("heldout", ())
        checkpoint, log = changes.pop("checkpoint", None), changes.pop("log", lambda metrics, step: None)
        self.logged: list[dict[str, float]] = []

        def logged(metrics: dict[str, float], step: int) -> None:
            self.logged.append({**metrics, "step": step})
            log(metrics, step)

        self.result = ppo.train_ppo(
            policy,
            preference_reward(reward, compute) if isinstance(reward, Path) else reward,
            red_team,
            helpful,
            SETTINGS.model_copy(update=changes),
            output,
            compute,
            logged,
            checkpoint,
            heldout,
        )


def measured(kind: Kind, tmp_path: Path, temperature: float = 0.7) -> tuple[Rollouts, Any, Any, ppo.ValueModel]:
    """Rollouts with random advantages and returns, the policy, a different reference, a value model."""
    settings = SETTINGS.model_copy(update={"temperature": temperature})
    local = load_model(tiny_model(kind, tmp_path / "policy"), COMPUTE)
    reference = load_model(tiny_model(kind, tmp_path / "reference", seed=1), COMPUTE).model
    reward = preference_reward(tiny_reward_model(kind, tmp_path / "reward"), COMPUTE)
    value_model = ppo.start_value_model(local.model, local.tokenizer, reward).eval().requires_grad_(True)
    local.model.requires_grad_(True)
    prompts = RED_TEAM + HELPFUL
    encoded = {prompt.prompt_id: encode_prompt(local.tokenizer, prompt.messages) for prompt in prompts}
    rollouts, _ = sample_rollouts(local, prompts, encoded, range(len(prompts)), settings, World())
    # Answers of 1 to 8 tokens, so that answers as well as prompts differ in length.
    rollouts.mask &= torch.arange(rollouts.mask.shape[1]) <= torch.arange(len(prompts))[:, None]
    ppo.measure(rollouts, [list(range(len(prompts)))], local.model, reference, value_model, temperature)
    generator = torch.Generator().manual_seed(0)
    rollouts.advantages = torch.randn(rollouts.mask.shape, generator=generator)
    rollouts.returns = torch.randn(rollouts.mask.shape, generator=generator)
    return rollouts, local.model, reference, value_model


def gradients(rollouts: Rollouts, batches: list[list[int]], model: Any, value_model: ppo.ValueModel) -> Any:
    return step_gradients(rollouts, batches, model, value_model, World())


def step_gradients(
    rollouts: Rollouts, batches: list[list[int]], model: Any, value_model: ppo.ValueModel, world: World
) -> Any:
    """Means of the statistics and all gradients of one step over the `batches` of all processes together."""
    model.zero_grad()
    value_model.zero_grad()
    settings = SETTINGS.model_copy(update={"temperature": 0.7})
    total = int(world.sum(torch.tensor(sum(int(rollouts.mask[list(rows)].sum()) for rows in batches))))
    sums = ppo.add_gradients(rollouts, [rows for rows in batches if rows], model, value_model, settings, total)
    world.sum_gradients((model, value_model))
    stats = dict(zip(ppo.STATISTICS, (world.sum(sums) / total).tolist(), strict=True))
    named = [*model.named_parameters(), *((f"value.{name}", p) for name, p in value_model.named_parameters())]
    return stats, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_trains(kind: Kind, tmp_path: Path) -> None:
    start = tiny_model(kind, tmp_path / "policy")
    run = Trained(start, tiny_reward_model(kind, tmp_path), tmp_path / "out")
    assert not equal_weights(start, run.output)
    assert load_model(run.output, COMPUTE).model.dtype == torch.float32
    assert not [path.name for path in run.output.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert [metrics["step"] for metrics in run.logged] == [0, 1]
    assert all(math.isfinite(value) for metrics in run.logged for value in metrics.values())
    expected = {"reward", "score_raw", "kl", "entropy", "clip_fraction", "approx_kl", "explained_variance"}
    expected |= {"value_loss", "policy_loss", "length", "no_eos_share", "tokens_per_second_update"}
    expected |= {"seconds_rollout", "seconds_score", "seconds_train"}
    assert expected <= run.logged[0].keys()
    assert [list(row) for row in run.result.rollouts] == [COLUMNS] * 12
    assert run.logged[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy starts as the reference
    assert abs(run.logged[1]["kl"]) > 1e-4
    assert run.result.metrics["updates"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_one_plain_forward_pass(kind: Kind, tmp_path: Path) -> None:
    rollouts, model, reference, _ = measured(kind, tmp_path)
    for network, actual in ((model, rollouts.logprobs), (reference, rollouts.reference_logprobs)):
        for row, prompt in enumerate(rollouts.prompt_ids):
            answer = rollouts.tokens[row][rollouts.mask[row]]
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([prompt + answer.tolist()])).logits[0] / 0.7
            expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, answer[:, None])[:, 0]
            torch.testing.assert_close(actual[row][rollouts.mask[row]], expected, rtol=0, atol=1e-5)
    assert float(rollouts.logprobs[~rollouts.mask].abs().sum()) == 0.0


def test_logits_are_made_for_answer_tokens_alone(tmp_path: Path) -> None:
    rollouts, model, _, _ = measured("llama", tmp_path)
    shapes: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    gradients(rollouts, [[0, 1, 2], [3, 4, 5, 6, 7, 8]], model, ppo.ValueModel(model.base_model, 32))
    hook.remove()
    counts = rollouts.mask.sum(dim=1)
    assert shapes == [
        (int(counts[:3].sum()), model.config.vocab_size),
        (int(counts[3:].sum()), model.config.vocab_size),
    ]


def test_the_first_ratio_is_1_whatever_the_buckets(tmp_path: Path) -> None:
    rollouts, model, _, _ = measured("llama", tmp_path)
    for row in range(len(rollouts.prompt_ids)):
        logits = answer_logits(model, *pack(rollouts, [row]), 0.7).detach()
        logprobs = token_logprobs(logits, rollouts.flat(rollouts.tokens, [row]))
        ratios = ppo_math.ratio(logprobs, rollouts.flat(rollouts.logprobs, [row]))
        assert float((ratios - 1).abs().max()) < 1e-5


def test_the_first_ratio_is_1_in_a_model_with_dropout(reward_model: Path, tmp_path: Path) -> None:
    folder = tiny_model("gpt_neox", tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5, "hidden_dropout": 0.5}))
    run = Trained(folder, reward_model, tmp_path / "out", updates=1, epochs=1)
    assert run.logged[0]["approx_kl"] < 1e-8
    assert run.logged[0]["clip_fraction"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_the_batches(kind: Kind, tmp_path: Path) -> None:
    """One padded batch, length buckets under a budget, and single rows give the same losses and gradients."""
    rollouts, model, _, value_model = measured(kind, tmp_path)
    rows = list(range(len(rollouts.prompt_ids)))
    # Old values of another policy, so that ratios are not all 1.
    rollouts.logprobs = rollouts.logprobs + 0.3 * rollouts.advantages
    buckets = micro_batches(rollouts, rows, batch_tokens=120, answer_tokens=1000)
    assert 1 < len(buckets) < len(rows)
    stats, expected = gradients(rollouts, [rows], model, value_model)
    assert stats["clip_fraction"] > 0
    for batches in (buckets, [[row] for row in rows]):
        other_stats, other = gradients(rollouts, batches, model, value_model)
        assert other_stats == pytest.approx(stats, abs=1e-5)
        assert other.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(other[name], expected[name], rtol=0, atol=1e-5)


def test_micro_batches_hold_every_row_once_within_their_budgets(tmp_path: Path) -> None:
    rollouts, _, _, _ = measured("llama", tmp_path)
    rows = [8, 2, 4, 0, 1]
    lengths, answers = rollouts.lengths(), rollouts.mask.sum(dim=1).tolist()
    for batch_tokens, answer_tokens in ((100, 1000), (10_000, 6), (1, 1)):
        groups = micro_batches(rollouts, rows, batch_tokens, answer_tokens)
        assert sorted(row for group in groups for row in group) == sorted(rows)
        for group in groups:
            assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= batch_tokens
            assert len(group) == 1 or sum(answers[row] for row in group) <= answer_tokens
    assert len(micro_batches(rollouts, rows, 10_000, 10_000)) == 1


def test_values_start_as_normalised_scores(policy: Path, reward_model: Path) -> None:
    reward = preference_reward(reward_model, COMPUTE)
    local = load_model(policy, COMPUTE)
    value_model = ppo.start_value_model(local.model, local.tokenizer, reward)
    ids = encode_conversation(local.tokenizer, RED_TEAM[0].messages, "Look at the soil.")[0]
    last = torch.zeros(1, len(ids), dtype=torch.bool)
    last[0, -1] = True
    value = value_model(torch.tensor([ids]), last).item()
    score = reward.normalised(reward.scores([RED_TEAM[0]], ["Look at the soil."]))[0]
    assert value == pytest.approx(score, abs=1e-5)


def test_a_reward_model_with_another_tokenizer(policy: Path, tmp_path: Path) -> None:
    other = tiny_reward_model("gpt_neox", tmp_path)
    local = load_model(policy, COMPUTE)
    value_model = ppo.start_value_model(local.model, local.tokenizer, preference_reward(other, COMPUTE))
    assert type(value_model.backbone) is type(local.model.base_model)
    assert not value_model.head.weight.any()
    assert all(math.isfinite(row["score"]) for row in Trained(policy, other, tmp_path / "out").result.rollouts)


def test_same_seed_same_weights(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    first = Trained(policy, reward_model, tmp_path / "first", minibatches=2)
    again = Trained(policy, reward_model, tmp_path / "again", minibatches=2)
    other = Trained(policy, reward_model, tmp_path / "other", minibatches=2, seed=4)
    assert equal_weights(first.output, again.output)
    assert first.result.rollouts == again.result.rollouts
    assert not equal_weights(first.output, other.output)


def test_the_checkpoints_generation_config_does_not_leak(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "policy")
    own = {"repetition_penalty": 5.0, "do_sample": True, "top_k": 1, "temperature": 0.1, "min_p": 0.5}
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    plain, leaky = Trained(policy, reward_model, tmp_path / "a"), Trained(folder, reward_model, tmp_path / "b")
    assert leaky.result.rollouts == plain.result.rollouts
    assert equal_weights(leaky.output, plain.output)


def test_fewer_prompts_than_rollouts(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    run = Trained(policy, reward_model, tmp_path / "out", red_team=RED_TEAM[:1], helpful=HELPFUL[:1], rollouts=8)
    rows = [row for row in run.result.rollouts if row["update"] == 0]
    assert Counter(row["prompt_id"] for row in rows) == {"red-0": 4, "helpful-0": 4}
    assert len({row["text"] for row in rows if row["prompt_id"] == "red-0"}) > 1  # each with a seed of its own


def test_prompts_come_in_shares_and_without_replacement(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    run = Trained(policy, reward_model, tmp_path / "out", updates=5, rollouts=4, epochs=1, harmful_share=0.25)
    for update in range(5):
        sources = [row["prompt_id"].split("-")[0] for row in run.result.rollouts if row["update"] == update]
        assert sources == ["red", "helpful", "helpful", "helpful"]
    red = [row["prompt_id"] for row in run.result.rollouts if row["prompt_id"].startswith("red")]
    helpful = [row["prompt_id"] for row in run.result.rollouts if row["prompt_id"].startswith("helpful")]
    assert sorted(red) == sorted(prompt.prompt_id for prompt in RED_TEAM)
    assert [len(set(helpful[at : at + 4])) for at in (0, 4, 8)] == [4, 4, 4]
    assert helpful[:4] != helpful[4:8] or helpful[4:8] != helpful[8:12]


def test_each_pass_uses_every_rollout_once(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[int]] = []
    plain = ppo.add_gradients

    def spy(rollouts: Rollouts, batches: list[list[int]], *rest: Any) -> Tensor:
        steps.append(sorted(row for rows in batches for row in rows))
        return plain(rollouts, batches, *rest)

    monkeypatch.setattr(ppo, "add_gradients", spy)
    Trained(policy, reward_model, tmp_path / "out", updates=1, rollouts=6, epochs=3, minibatches=2)
    assert [len(rows) for rows in steps] == [3] * 6
    assert [sorted(steps[i] + steps[i + 1]) for i in (0, 2, 4)] == [list(range(6))] * 3
    assert len({tuple(rows) for rows in steps}) > 2


def test_an_answer_that_was_cut_off_earns_at_most_the_penalty(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    run = Trained(policy, reward_model, tmp_path / "out", max_new_tokens=2, missing_eos_penalty=-3.0, score_clip=1.0)
    metrics, rows = run.logged[0], [row for row in run.result.rollouts if row["update"] == 0]
    assert metrics["no_eos_share"] > 0.5
    assert sum(row["score"] == -3.0 for row in rows) == round(metrics["no_eos_share"] * len(rows))
    assert metrics["score"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    assert metrics["length"] == pytest.approx(sum(row["tokens"] for row in rows) / len(rows))


def two_armed(folder: Path) -> tuple[Path, int]:
    """A policy that says either the end of turn or "A", evenly, and all else with probability below 1e-5."""
    tiny_model("gpt_neox", folder)
    local = load_model(folder, COMPUTE)
    model: Any = local.model
    end, other = (local.tokenizer.get_vocab()[token] for token in ("<|endoftext|>", "A"))
    with torch.no_grad():
        norm, head = model.base_model.final_layer_norm, model.get_output_embeddings()
        norm.weight.fill_(0.1)
        norm.bias.zero_()
        norm.bias[0] = 10.0
        head.weight.zero_()
        head.weight[:, 0] = -1.0
        head.weight[[end, other], 0] = 1.0
    model.save_pretrained(folder)
    return folder, end


@pytest.mark.parametrize("score", [1.0, -0.5, -3.0])
def test_a_bandit_with_two_arms_is_learned(score: float, tmp_path: Path) -> None:
    """Ending earns `score`, going on at most the penalty of -1: ending must win where it earns more, from a policy that
    takes both. Where it does not, both earn the same: a bad score is not escaped by never ending."""
    folder, end = two_armed(tmp_path / "policy")
    reward = Reward("constant", lambda prompts, texts: np.full(len(texts), score), mean=0.0, spread=1.0)
    run = Trained(
        folder, reward, tmp_path / "out", updates=10, rollouts=16, epochs=4, max_new_tokens=1, kl_coefficient=0.0,
        learning_rate=0.02, value_learning_rate=0.02,
    )  # fmt: skip
    assert 0.2 < run.logged[0]["no_eos_share"] < 0.8
    if score < -1.0:
        assert {row["score"] for row in run.result.rollouts} == {score}
        return
    local = load_model(run.output, COMPUTE)
    for prompt in RED_TEAM + HELPFUL:
        with torch.no_grad():
            logits = local.model(input_ids=torch.tensor([encode_prompt(local.tokenizer, prompt.messages)])).logits
        p_end = float(logits[0, -1].softmax(-1)[end])
        assert p_end > 0.9


def test_a_large_kl_coefficient_holds_the_policy_back(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    changes = {"updates": 6, "rollouts": 12, "max_new_tokens": 6}
    free = Trained(policy, reward_model, tmp_path / "free", kl_coefficient=0.0, **changes)
    held = Trained(policy, reward_model, tmp_path / "held", kl_coefficient=10.0, **changes)
    assert held.logged[-1]["kl"] < free.logged[-1]["kl"]


def test_no_prompt_that_fits_is_an_error(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"red_team_prompts.*max_prompt_tokens"):
        Trained(policy, reward_model, tmp_path / "out", max_prompt_tokens=3)
    with pytest.raises(TrainingError, match="helpful_prompts"):
        Trained(policy, reward_model, tmp_path / "out", helpful=[])
    alone = Trained(policy, reward_model, tmp_path / "out", helpful=[], harmful_share=1.0)
    assert len(alone.result.rollouts) == 12


def test_prompts_beyond_the_limit_are_left_out(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    local = load_model(policy, COMPUTE)
    lengths = {p.prompt_id: len(encode_prompt(local.tokenizer, p.messages)) for p in RED_TEAM + HELPFUL}
    limit = sorted(lengths.values())[4]
    run = Trained(policy, reward_model, tmp_path / "out", max_prompt_tokens=limit)
    fitting = {name for name, n in lengths.items() if n <= limit}
    assert {row["prompt_id"] for row in run.result.rollouts} <= fitting
    assert {row.where for row in run.result.rejected} == lengths.keys() - fitting
    assert all(f"{limit} tokens" in row.reason and row.text for row in run.result.rejected)


def test_a_score_that_is_not_finite_is_an_error(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreferenceScorer, "token_scores", lambda self, sequences: np.full(len(sequences), np.nan))
    with pytest.raises(TrainingError, match=r"score of an answer to prompt red-\d is not finite"):
        Trained(policy, reward_model, tmp_path / "out")


def test_a_step_that_is_not_finite_is_skipped_and_five_in_a_row_are_an_error(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = ppo_math.value_loss, []

    def spoiled(bad: set[int]) -> Any:
        calls.clear()

        def value_loss(*args: Any) -> Tensor:
            calls.append(1)
            return plain(*args) * (math.nan if len(calls) in bad else 1.0)

        return value_loss

    # One micro-batch a step: 2 updates of 4 passes.
    compute = COMPUTE.model_copy(update={"batch_tokens": 100_000})
    monkeypatch.setattr(f"{__name__}.COMPUTE", compute)
    monkeypatch.setattr(ppo_math, "value_loss", spoiled({1, 3, 4, 5, 6, 8}))
    run = Trained(policy, reward_model, tmp_path / "out", epochs=4)
    assert run.logged[-1]["skipped_steps"] == 6
    assert all(torch.isfinite(weight).all() for weight in weights(run.output).values())
    monkeypatch.setattr(ppo_math, "value_loss", spoiled({2, 3, 4, 5, 6}))
    with pytest.raises(TrainingError, match="5 steps in a row"):
        Trained(policy, reward_model, tmp_path / "none", epochs=4)
    assert len(calls) == 6
    assert not (tmp_path / "none").exists()
