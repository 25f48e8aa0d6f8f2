"""The preference model's training against TRL's RewardTrainer: pairs per second at equal held-out loss.

    python -m benchmarks.preference_model [--pairs 400] [--markdown docs/benchmarks.md]

Pairs of people, hh-rlhf's file, in a Llama with random weights; the same weights, tokens, pairs per step, learning rate
by step, optimiser, clipping and epochs on both sides, TRL's batches in random order, no gradient checkpointing,
float32 weights. Each side is a process of its own and times its training alone; held-out pairs are read by our scorer.
Labels are hard, for TRL's trainer has no others. Seeds 0 to 2.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from benchmarks.labelling import build_tokenizer
from benchmarks.marked_page import machine, publish
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs
from rlaif_assets.records import PreferenceExample
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.training import preference_model

DATA = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
HELDOUT = 200
TARGET = 2.0
BETTER = 0.01  # nats by which the held-out losses of equal trainings may differ
GEOMETRIES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
    "0.5b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1.5b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
}


class BenchmarkError(ValueError):
    """A side that failed."""


def examples(data: Path, count: int) -> list[PreferenceExample]:
    """The better text is `response_a`."""
    found, _ = read_labelled_pairs(str(data), count)
    return [
        PreferenceExample(row.comparison_id, row.messages, *sides(row), 1.0, "human", 1.0)
        for row in found
        if row.p_a != 0.5
    ]


def sides(row: Any) -> tuple[str, str]:
    return (row.response_a, row.response_b) if row.p_a > 0.5 else (row.response_b, row.response_a)


def build_model(folder: Path, geometry: str, pairs: list[PreferenceExample]) -> None:
    texts = [text for pair in pairs for text in (*(m["content"] for m in pair.messages), pair.response_a)]
    tokenizer: Any = build_tokenizer(texts, 8192)
    shape = GEOMETRIES[geometry]
    config = LlamaConfig(
        **shape, num_key_value_heads=shape["num_attention_heads"], vocab_size=len(tokenizer),
        max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config.num_labels = 1
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_ours(request: dict[str, Any], pairs: list[PreferenceExample]) -> tuple[Path, float]:
    compute = ComputeSettings(
        device=request["device"], threads=request["threads"], batch_tokens=request["tokens"], dtype=request["dtype"]
    )
    output = Path(request["output"])
    started: list[float] = []
    ended: list[float] = []

    def progress(_phase: str, done: int, total: int) -> None:
        (started if done == 0 else ended).append(time.perf_counter())

    preference_model.train_preference_model(
        Path(request["start"]), pairs, [], epochs=1.0, learning_rate=request["learning_rate"],
        batch_size=request["batch"], max_length=request["max_length"], seed=request["seed"], center_coefficient=0.0,
        output=output, compute=compute, log=lambda metrics, step: None, progress=progress,
    )  # fmt: skip
    return output, ended[-1] - started[0]


def train_theirs(request: dict[str, Any], pairs: list[PreferenceExample]) -> tuple[Path, float]:
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    torch.set_num_threads(request["threads"])
    model, tokenizer = preference_model.load_preference_model(Path(request["start"]), request["seed"])
    encoded, _ = preference_model.encode_pairs(tokenizer, pairs, request["max_length"])
    steps = -(-len(encoded) // request["batch"])
    arguments = RewardConfig(
        output_dir=request["output"], num_train_epochs=1, learning_rate=request["learning_rate"], weight_decay=0.0,
        per_device_train_batch_size=request["batch"], max_length=None,
        bf16=request["dtype"] == "bfloat16", gradient_checkpointing=False,
        optim="adamw_torch_fused", max_grad_norm=preference_model.MAX_GRAD_NORM, seed=request["seed"],
        use_cpu=request["device"] == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
        logging_strategy="no", dataloader_pin_memory=request["device"] != "cpu",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=request["learning_rate"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: preference_model.learning_rate_factor(step, steps)
    )
    trainer = RewardTrainer(
        model=model, args=arguments, processing_class=tokenizer, optimizers=(optimizer, schedule),
        train_dataset=Dataset.from_list([{"chosen_ids": pair.a, "rejected_ids": pair.b} for pair in encoded]),
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(request["output"])
    tokenizer.save_pretrained(request["output"])
    return Path(request["output"]), seconds


def side(request: dict[str, Any]) -> None:
    """One process: trains, scores the held-out pairs, prints what came of it."""
    pairs = examples(Path(request["data"]), request["pairs"] + HELDOUT)
    train, heldout = pairs[HELDOUT:], pairs[:HELDOUT]
    folder, seconds = (train_ours if request["side"] == "ours" else train_theirs)(request, train)
    compute = ComputeSettings(device=request["device"], threads=request["threads"])
    scorer = preference_model.PreferenceScorer(folder, compute)
    messages = [pair.messages for pair in heldout]
    margins = scorer.scores(messages, [p.response_a for p in heldout]) - scorer.scores(
        messages, [p.response_b for p in heldout]
    )
    loss = float(np.mean(np.logaddexp(0.0, -margins)))
    print(json.dumps({"pairs": len(train), "seconds": seconds, "loss": loss, "right": float((margins > 0).mean())}))


def run_side(request: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.preference_model", "--side", json.dumps(request)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"{request['side']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(chosen: argparse.Namespace) -> str:
    pairs = examples(chosen.data, chosen.pairs + HELDOUT)
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder) / "start", chosen.geometry, pairs)
        for seed in range(chosen.seeds):
            for name, runs in found.items():
                print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
                request = {
                    "side": name, "start": f"{folder}/start", "output": f"{folder}/{name}-{seed}", "seed": seed,
                    "data": str(chosen.data), "pairs": chosen.pairs, "batch": chosen.batch, "device": chosen.device,
                    "threads": chosen.threads, "max_length": chosen.max_length, "tokens": chosen.batch_tokens,
                    "learning_rate": chosen.learning_rate, "dtype": chosen.dtype,
                }  # fmt: skip
                runs.append(run_side(request))
    lines = [
        f"{machine(chosen, chosen.dtype, 'torch', 'transformers', 'trl')}; Llama "
        f"{json.dumps(GEOMETRIES[chosen.geometry])}; {found['ours'][0]['pairs']} pairs, {chosen.batch} a step, "
        f"{HELDOUT} held out; {datetime.date.today()}.",
        "",
        "| side | pairs/s by seed | held-out NLL by seed | held-out accuracy by seed |",
        "| --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        rates = ", ".join(f"{one['pairs'] / one['seconds']:.2f}" for one in runs)
        losses = ", ".join(f"{one['loss']:.4f}" for one in runs)
        right = ", ".join(f"{one['right']:.1%}" for one in runs)
        lines.append(f"| {'RewardTrainer' if name == 'trl' else 'ours'} | {rates} | {losses} | {right} |")
    ratio = statistics.median(
        theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found["ours"], found["trl"], strict=True)
    )
    gap = statistics.mean(one["loss"] for one in found["ours"]) - statistics.mean(one["loss"] for one in found["trl"])
    met = "met" if ratio >= TARGET else "MISSED"
    equal = "equal" if abs(gap) <= BETTER else "ours is lower" if gap < 0 else "ours is HIGHER"
    told = f"Ratio of pairs/s: {ratio:.2f} (at least {TARGET:g}: {met}). Mean held-out NLL, ours less theirs: "
    return "\n".join([*lines, "", f"{told}{gap:+.4f} ({equal}, within {BETTER})."])


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="to train on")
    parser.add_argument("--batch", type=int, default=16, help="pairs per optimiser step")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of our forward passes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides' passes")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    chosen = parse(words)
    if chosen.side:
        side(json.loads(chosen.side))
        return
    publish("preference-model", chosen.markdown, lambda: report(chosen), BenchmarkError, IngestError)


if __name__ == "__main__":
    main()
