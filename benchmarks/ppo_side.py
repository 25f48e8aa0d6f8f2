"""One side of `benchmarks.ppo` in a process of its own: reads a request as JSON, prints what it measured as JSON.

`side` ours: this package's PPO. `side` trl: PPOTrainer of trl 1.12.0, which `trl` (a folder) brings to the front of the
path. Both train the same folders of weights on the same prompts with the same settings.

With `answers` (a list of token ids per prompt) TRL samples nothing and takes those; its whitening then divides by the
population's spread as ours does, and the policy's weights go to `output`: tests compare one update of both.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

Request = dict[str, Any]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def held_mb(device: str) -> float:
    """What is held now, where the peak is counted: from here on, for a GPU."""
    if not device.startswith("cuda"):
        return rss_mb()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


def device_peak_mb(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else peak_mb()


def ours(request: Request) -> dict[str, Any]:
    from rlaif_assets.records import Message, Prompt
    from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
    from rlaif_assets.training import ppo
    from rlaif_assets.training.rewards import preference_reward

    folder, settings = Path(request["folder"]), request["settings"]
    compute = ComputeSettings(
        device=request["device"], threads=request["threads"], batch_tokens=request["batch_tokens"],
        dtype=request["dtype"], progress="none",
    )  # fmt: skip
    prompts = [
        Prompt(f"prompt-{i}", (Message(role="user", content=text),), "train", "unknown", "benchmark")
        for i, text in enumerate(request["prompts"])
    ]
    reward = preference_reward(folder / "reward_model", compute)
    updates: list[dict[str, float]] = []
    ends: list[float] = []
    steps: list[int] = []
    base: list[float] = []
    plain, sample = torch.optim.AdamW.step, ppo.sample_rollouts

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return plain(self, *args, **kwargs)

    def sampled(*args: Any) -> Any:
        if not base:
            base.append(held_mb(request["device"]))
        return sample(*args)

    def log(metrics: dict[str, float], update: int) -> None:
        ends.append(time.perf_counter())
        updates.append(metrics)

    torch.optim.AdamW.step = step
    ppo.sample_rollouts = sampled
    started = time.perf_counter()
    result = ppo.train_ppo(
        folder / "policy", reward, prompts, [],
        PpoPolicySettings(
            updates=settings["updates"], rollouts=settings["rollouts"], epochs=settings["epochs"], minibatches=1,
            max_new_tokens=settings["response_length"], temperature=1.0, learning_rate=settings["learning_rate"],
            value_learning_rate=settings["learning_rate"], kl_coefficient=settings["kl_coefficient"], clip_range=0.2,
            value_clip_range=0.2, gamma=1.0, gae_lambda=0.95, max_grad_norm=1e9, missing_eos_penalty=1e9,
            score_clip=1e9, harmful_share=1.0, max_prompt_tokens=settings["max_prompt_tokens"], seed=request["seed"],
        ),
        Path(request["output"]), compute, log,
    )  # fmt: skip
    tokens = [0] * settings["updates"]
    for row in result.rollouts:
        tokens[row["update"]] += row["tokens"] + request["prompt_tokens"][int(row["prompt_id"].split("-")[1])]
    return {
        "seconds": [end - begin for begin, end in zip([started, *ends], ends, strict=False)],
        "phases": [[m["seconds_rollout"], m["seconds_score"], m["seconds_train"]] for m in updates],
        "tokens": tokens,
        "scores": [m["score_raw"] for m in updates],
        "kl": [m["kl"] for m in updates],
        "lengths": [m["length"] for m in updates],
        "steps": len(steps) // 2,  # one optimiser each for policy and value
        "peak_mb": device_peak_mb(request["device"]),
        "base_mb": base[0],
    }


def trl(request: Request) -> dict[str, Any]:
    sys.path.insert(0, request["trl"])
    import trl as package
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

    assert package.__version__ == "1.12.0", package.__version__
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    folder, settings = Path(request["folder"]), request["settings"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32) for _ in range(2))
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward_model", num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    rows = settings["rollouts"]
    ends: list[float] = []
    marks: dict[str, list[float]] = {"rollout": [], "score": []}
    seen: dict[str, list[float]] = {"objective/scores": [], "objective/kl": []}
    tokens: list[int] = []
    base: list[float] = []
    steps: list[int] = []
    generation, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten

    def batch_generation(model: Any, queries: Any, *args: Any) -> Any:
        if not base:
            base.append(held_mb(request["device"]))
        found = given(model, queries) if "answers" in request else generation(model, queries, *args)
        answers = found[0][:, queries.shape[1] :]
        ended = answers == tokenizer.eos_token_id
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, answers.shape[1])
        tokens.append(int((queries != tokenizer.pad_token_id).sum() + lengths.sum()))
        lengths_seen.append(float(lengths.float().mean()))
        marks["rollout"].append(time.perf_counter())
        return found

    def given(model: Any, queries: Any) -> Any:
        asked = {tuple(ids): answer for ids, answer in zip(request["prompt_ids"], request["answers"], strict=True)}
        rows = [[i for i in row if i != tokenizer.pad_token_id] for row in queries.tolist()]
        whole = torch.cat([queries, torch.tensor([asked[tuple(row)] for row in rows])], dim=1)
        logits = ppo_trainer.forward(model, whole, tokenizer.pad_token_id).logits
        return whole, logits[:, queries.shape[1] - 1 : -1]

    def masked_whiten(values: Any, mask: Any, **kwargs: Any) -> Any:
        marks["score"].append(time.perf_counter())
        count = int(mask.sum())
        return whiten(values, mask, **kwargs) * ((count / (count - 1)) ** 0.5 if "answers" in request else 1.0)

    lengths_seen: list[float] = []
    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = batch_generation, masked_whiten

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name, values in seen.items():
                if logs and name in logs:
                    values.append(logs[name])

    micro = settings["micro_rows"]
    config = PPOConfig(
        output_dir=request["output"], per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro,
        num_mini_batches=1, num_ppo_epochs=settings["epochs"], total_episodes=rows * settings["updates"],
        local_rollout_forward_batch_size=settings["forward_rows"], response_length=settings["response_length"],
        stop_token="eos", temperature=1.0, learning_rate=settings["learning_rate"], adam_epsilon=1e-5,
        weight_decay=0.0, kl_coef=settings["kl_coefficient"], kl_estimator="k1", cliprange=0.2, cliprange_value=0.2,
        vf_coef=settings.get("vf_coef", 0.1),
        gamma=1.0, lam=0.95, whiten_rewards=False, missing_eos_penalty=None, num_sample_generations=0,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, bf16=False, seed=request["seed"],
        gradient_checkpointing=False, use_cpu=request["device"] == "cpu",
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": ids} for ids in request["prompt_ids"]])
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward_model,
        value_model=value_model, train_dataset=data, eval_dataset=data, callbacks=[Watch()],
    )  # fmt: skip
    inner = trainer.optimizer.optimizer
    plain = inner.step

    def step(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return plain(*args, **kwargs)

    inner.step = step
    started = time.perf_counter()
    trainer.train()
    if "answers" in request:
        trainer.policy_model.save_pretrained(request["output"])
    begins = [started, *ends]
    phases = [
        [rollout - begin, score - rollout, end - score]
        for begin, rollout, score, end in zip(begins, marks["rollout"], marks["score"], ends, strict=False)
    ]
    return {
        "seconds": [end - begin for begin, end in zip(begins, ends, strict=False)],
        "phases": phases,
        "tokens": tokens,
        "scores": seen["objective/scores"],
        "kl": seen["objective/kl"],
        "lengths": lengths_seen,
        "steps": len(steps),
        "peak_mb": device_peak_mb(request["device"]),
        "base_mb": base[0],
    }


if __name__ == "__main__":
    asked: Request = json.loads(sys.stdin.read())
    print(json.dumps(trl(asked) if asked["side"] == "trl" else ours(asked)))
