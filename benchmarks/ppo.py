"""PPO against the last one that TRL shipped (1.12.0): speed, memory and learning, on the same weights and prompts.

    pip install --no-deps --target DIR trl==1.12.0
    python -m benchmarks.ppo --trl DIR [--regimes constant,hh,learning] [--markdown docs/benchmarks.md]

Policy, reference, reward model and value model are GPT-NeoX with random weights, whose tokens are words, so that both
sides read the same ids. Both sides: 4 passes, 1 minibatch, the same learning rate and schedule for policy and value,
AdamW with eps 1e-5, no gradient clipping, k1 in the reward, no penalty for answers without end. Each run is a process
of its own; the first update warms up and is not counted.

constant: prompts and answers of one length, so that nothing is padded. hh: prompts as long as those of the hh-rlhf file
and answers that end at random after 43 tokens on average, as theirs do. learning: a small model whose answers end after
12 tokens on average, seeds 0 to 2, the score of the last quarter of the updates. TRL's micro-batch has as many padded
tokens as ours may have.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.marked_page import machine, publish
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.prompts import read_prompts
from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.records import Message
from rlaif_assets.settings import RedTeamPromptsSettings
from rlaif_assets.training.preference_model import NORMALISATION_FILE

DATA = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
CHARACTERS_PER_TOKEN = 4.4
MEAN_ANSWER = 43  # tokens of an answer in the hh-rlhf file
SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEOMETRIES: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
              "num_attention_heads": 8},
    "tiny": {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
             "num_attention_heads": 4},
    "0.5b": {"vocab_size": 50304, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
             "num_attention_heads": 16},
    "1.5b": {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
             "num_attention_heads": 16},
}  # fmt: skip
TARGETS = {"constant": 1.25, "hh": 3.0}


class BenchmarkError(ValueError):
    """Sides that differ, or something that the benchmark needs and does not have."""


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token is a word "w17", so that text and ids say the same."""
    words = {token: i for i, token in enumerate(SPECIAL)}
    words |= {f"w{i}": i for i in range(len(SPECIAL), vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_models(folder: Path, geometry: str, mean_answer: float | None, device_length: int) -> None:
    """policy and reward_model in `folder`. Each token of an answer is the last with probability 1 / `mean_answer`."""
    config = GPTNeoXConfig(
        **GEOMETRIES[geometry], max_position_embeddings=device_length, bos_token_id=None, eos_token_id=0,
        pad_token_id=1, initializer_range=0.02,
    )  # fmt: skip
    tokenizer = build_tokenizer(config.vocab_size)
    torch.manual_seed(0)
    policy: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        norm, head = policy.base_model.final_layer_norm, policy.get_output_embeddings()
        norm.weight[0], norm.bias[0] = 0.0, 1.0  # a feature that is always 1
        head.weight[:, 0] = 0.0
        head.weight[1 : len(SPECIAL), 0] = -30.0
        end = -30.0 if mean_answer is None else math.log(config.vocab_size / (mean_answer - 1))
        head.weight[0] = 0.0
        head.weight[0, 0] = end
    policy.generation_config.eos_token_id = 0
    policy.save_pretrained(folder / "policy")
    torch.manual_seed(1)
    config.num_labels = 1
    reward_model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        reward_model.score.weight.normal_(std=1 / math.sqrt(config.hidden_size))
    reward_model.save_pretrained(folder / "reward_model")
    (folder / "reward_model" / NORMALISATION_FILE).write_text(json.dumps({"mean": 0.0, "spread": 1.0}))
    for name in ("policy", "reward_model"):
        tokenizer.save_pretrained(folder / name)


def prompt_lengths(data: Path, longest: int) -> list[int]:
    if not data.is_file():
        raise BenchmarkError(f"{data} is not a file: name the hh-rlhf file with --data, or leave the regime hh out")
    prompts, _ = read_prompts(RedTeamPromptsSettings(path=str(data)), "red_team")
    characters = [sum(len(message["content"]) for message in prompt.messages) for prompt in prompts]
    return [min(longest, max(4, round(count / CHARACTERS_PER_TOKEN))) for count in characters]


def build_prompts(lengths: list[int], vocabulary: int, count: int) -> list[str]:
    """`count` texts of random words, as long as `lengths` (drawn without replacement)."""
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(lengths), generator=draw).tolist()
    return [
        " ".join(
            f"w{i}"
            for i in torch.randint(len(SPECIAL), vocabulary, (lengths[order[row % len(order)]],), generator=draw)
        )
        for row in range(count)
    ]


def regime_settings(regime: str, chosen: argparse.Namespace) -> tuple[str, float | None, list[int], dict[str, Any]]:
    """Geometry, mean answer, prompt lengths, and what both sides are told."""
    common = {"epochs": 4, "kl_coefficient": 0.05}
    if regime == "learning":
        told = {"updates": 24, "rollouts": 64, "response_length": 48, "learning_rate": 1e-3, "forward_rows": 64}
        return "tiny", 12, [8], common | told
    told = {
        "updates": chosen.updates + 1,
        "rollouts": chosen.rollouts,
        "learning_rate": 3e-6,
        "forward_rows": chosen.forward_rows,
    }
    if regime == "constant":
        return chosen.geometry, None, [96], common | told | {"response_length": 48}
    return chosen.geometry, MEAN_ANSWER, prompt_lengths(chosen.data, 512), common | told | {"response_length": 128}


def run(regime: str, seed: int, chosen: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Both sides of a regime, one after the other."""
    geometry, mean_answer, lengths, settings = regime_settings(regime, chosen)
    place = folder / f"{regime}-{seed}"
    build_models(place, geometry, mean_answer, 1024)
    tokenizer = build_tokenizer(GEOMETRIES[geometry]["vocab_size"])
    count = settings["rollouts"] * (settings["updates"] + 1)  # TRL steps otherwise in the last batch of an epoch
    texts = build_prompts(lengths, GEOMETRIES[geometry]["vocab_size"], count)
    ids = [encode_prompt(tokenizer, [Message(role="user", content=text)]) for text in texts]
    longest = max(map(len, ids)) + settings["response_length"]
    settings |= {"max_prompt_tokens": max(map(len, ids)), "micro_rows": chosen.micro_rows}
    request = {
        "folder": str(place), "settings": settings, "prompts": texts, "prompt_ids": ids,
        "prompt_tokens": list(map(len, ids)), "threads": chosen.threads, "device": chosen.device,
        "dtype": chosen.dtype, "batch_tokens": chosen.micro_rows * longest, "seed": seed, "trl": str(chosen.trl),
    }  # fmt: skip
    found = {}
    for side in ("ours", "trl"):
        print(f"{regime}, seed {seed}: {side}", file=sys.stderr, flush=True)
        found[side] = run_side(request | {"side": side, "output": str(place / side)})
    if found["ours"]["steps"] != found["trl"]["steps"]:
        raise BenchmarkError(f"{regime}: {found['ours']['steps']} optimiser steps and {found['trl']['steps']} by TRL")
    return found


def run_side(request: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("ppo_side.py")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if request["dtype"] == "bfloat16":
        settings["ACCELERATE_MIXED_PRECISION"] = "bf16"  # TRL's own option does nothing under transformers 5
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(request), capture_output=True, text=True,
        env={**os.environ, **settings, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"{request['side']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def speed_rows(regime: str, found: dict[str, dict[str, Any]], rollouts: int) -> list[str]:
    """The regime's lines of the table: medians over the updates after the first."""

    def median(values: list[float]) -> float:
        return statistics.median(values[1:])

    lines = []
    for side, name in (("trl", "trl 1.12.0"), ("ours", "ours")):
        one = found[side]
        phases = [median([update[i] for update in one["phases"]]) for i in range(3)]
        rate = statistics.median(t / s for t, s in list(zip(one["tokens"], one["seconds"], strict=True))[1:])
        above = one["peak_mb"] - one["base_mb"]
        lines.append(
            f"| {regime} | {name} | {rollouts / median(one['seconds']):.2f} | {rate:.0f} | "
            f"{' / '.join(f'{phase:.1f}' for phase in phases)} | {above:.0f} | {one['steps']} | "
            f"{statistics.mean(one['lengths'][1:]):.0f} |"
        )
    ours, trl = found["ours"], found["trl"]
    ratio = median(trl["seconds"]) / median(ours["seconds"])
    memory = (ours["peak_mb"] - ours["base_mb"]) / (trl["peak_mb"] - trl["base_mb"])
    lines.append(
        f"| {regime} | ratio | {ratio:.2f} ({verdict(ratio >= TARGETS[regime], f'at least {TARGETS[regime]}')}) | | "
        f"| {memory:.2f} ({verdict(memory <= 0.5, 'at most 0.5')}) | equal | |"
    )
    return lines


def verdict(met: bool, target: str) -> str:
    return f"{target}: {'met' if met else 'MISSED'}"


def learning_rows(runs: list[dict[str, dict[str, Any]]]) -> list[str]:
    """Score and KL of the last quarter by side and seed, and whether ours lies in the peer's band."""

    def last(values: list[float]) -> float:
        return statistics.mean(values[-len(values) // 4 :])

    lines = ["| side | score, first update | score, last quarter | KL, last quarter |", "| --- | --- | --- | --- |"]
    for side, name in (("trl", "trl 1.12.0"), ("ours", "ours")):
        cells = [
            ", ".join(f"{value:.3f}" for value in values)
            for values in (
                [one[side]["scores"][0] for one in runs],
                [last(one[side]["scores"]) for one in runs],
                [last(one[side]["kl"]) for one in runs],
            )
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    theirs = [last(one["trl"]["scores"]) for one in runs]
    mean = statistics.mean(last(one["ours"]["scores"]) for one in runs)
    inside = min(theirs) <= mean <= max(theirs)
    return [*lines, "", f"Our mean {mean:.3f}, the peer's band {min(theirs):.3f} to {max(theirs):.3f}: "
            f"{'within' if inside else 'above' if mean > max(theirs) else 'BELOW'}."]  # fmt: skip


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="folder that holds trl 1.12.0")
    parser.add_argument("--regimes", default="constant,hh,learning")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--updates", type=int, default=3, help="counted updates")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--micro-rows", type=int, default=8, help="rows of TRL's micro-batch; ours has as many tokens")
    parser.add_argument("--forward-rows", type=int, default=16, help="rows that TRL samples and scores at once")
    parser.add_argument("--seeds", type=int, default=3, help="of the regime learning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    chosen = parse(words)
    publish("ppo", chosen.markdown, lambda: report(chosen), BenchmarkError, IngestError)


def report(chosen: argparse.Namespace) -> str:
    if not (chosen.trl / "trl").is_dir():
        raise BenchmarkError(f"{chosen.trl} has no trl: pip install --no-deps --target {chosen.trl} trl==1.12.0")
    lines = [
        f"{machine(chosen, chosen.dtype, 'torch', 'transformers')}, trl 1.12.0; geometry {chosen.geometry} "
        f"{json.dumps(GEOMETRIES[chosen.geometry])}; {chosen.rollouts} rollouts an update, median of {chosen.updates}; "
        f"{datetime.date.today()}.",
        "",
    ]
    regimes = chosen.regimes.split(",")
    with tempfile.TemporaryDirectory() as folder:
        timed = [regime for regime in regimes if regime in TARGETS]
        if timed:
            lines += [
                "| lengths | side | episodes/s | useful tokens/s | seconds: rollout / score / train "
                "| MiB above the start | optimiser steps | answer tokens |",
                "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
            ]
        for regime in timed:
            lines += speed_rows(regime, run(regime, 0, chosen, Path(folder)), chosen.rollouts)
        if "learning" in regimes:
            runs = [run("learning", seed, chosen, Path(folder)) for seed in range(chosen.seeds)]
            lines += ["", *learning_rows(runs)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
