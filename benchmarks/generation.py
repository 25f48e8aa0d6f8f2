"""Sampling answers against transformers' `generate` and distilabel's TransformersLLM: answers per second.

    python -m benchmarks.generation [--distilabel-python PATH] [--markdown docs/benchmarks.md]

A GPT-NeoX with random weights whose tokens are words; prompts as long as those of the hh-rlhf file and answers that end
at random, after 43 tokens on average, as theirs do (`benchmarks.ppo`). Every side samples one answer a prompt at
temperature 1, at most 128 tokens. (a) `generate` in batches of 32 in random order, padded on the left; (b) distilabel's
TransformersLLM as it comes, in an environment of its own, or a transformers pipeline at its default, named so. Lengths
are drawn by each side for itself, so their mean stands beside the pace. (b) gets the first prompts alone.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import ppo
from benchmarks.labelling import BenchmarkError, rewrite_json, run_side
from benchmarks.marked_page import machine, publish
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings

TARGETS = {"a": 1.8, "b": 6.0}
LONGEST = 128  # tokens of an answer
BATCH = 32


@dataclass(frozen=True)
class Timed:
    name: str
    answers: int
    tokens: int
    seconds: float

    @property
    def pace(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def ours(folder: Path, prompts: Sequence[str], chosen: argparse.Namespace) -> Timed:
    compute = ComputeSettings(device=chosen.device, threads=chosen.threads, batch_tokens=chosen.batch_tokens)
    local = load_model(folder / "policy", compute)
    local.model.to(getattr(torch, chosen.dtype))
    conversations = [[Message(role="user", content=text)] for text in prompts]

    def sample(rows: Sequence[int]) -> int:
        found = local.generate([conversations[i] for i in rows], list(rows), LONGEST, 1.0)
        return sum(len(answer.token_ids) for answer in found)

    return timed("ours", sample, len(prompts))


def with_generate(folder: Path, prompts: Sequence[str], chosen: argparse.Namespace) -> Timed:
    """(a)"""
    torch.set_num_threads(chosen.threads)
    tokenizer = ppo.build_tokenizer(ppo.GEOMETRIES[chosen.geometry]["vocab_size"])
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=getattr(torch, chosen.dtype))
    model.to(chosen.device).eval()
    ids = [encode_prompt(tokenizer, [Message(role="user", content=text)]) for text in prompts]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).tolist()

    def sample(rows: Sequence[int]) -> int:
        count = 0
        shuffled = [row for row in order if row in set(rows)]
        for start in range(0, len(shuffled), BATCH):
            part = [ids[row] for row in shuffled[start : start + BATCH]]
            width = max(map(len, part))
            padded = torch.tensor([[1] * (width - len(row)) + row for row in part], device=chosen.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=chosen.device)
            with torch.inference_mode():
                out = model.generate(
                    input_ids=padded, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=LONGEST, eos_token_id=0, pad_token_id=1,
                )  # fmt: skip
            count += int((out[:, width:] != 1).sum())
        return count

    torch.manual_seed(0)
    return timed(f"(a) generate, batches of {BATCH} in random order", sample, len(prompts))


def with_distilabel(folder: Path, prompts: Sequence[str], chosen: argparse.Namespace) -> Timed:
    """(b), of a folder without a chat template that transformers 4 reads too."""
    peer = Path(shutil.copytree(folder / "policy", folder / "peer", ignore=shutil.ignore_patterns("*.jinja")))
    rewrite_json(peer / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    request: dict[str, Any] = {
        "folder": str(peer), "prompts": list(prompts), "threads": chosen.threads, "device": chosen.device,
        "dtype": chosen.dtype,
        "arguments": {"max_new_tokens": LONGEST, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    }  # fmt: skip
    name, python = "(b) distilabel's TransformersLLM", chosen.distilabel_python
    done = run_side(python, request | {"side": "distilabel"}) if python else None
    if done is None or done.returncode:
        name = "(b) transformers pipeline at its default"
        if done is not None:
            print(f"distilabel could not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        done = run_side(Path(sys.executable), request | {"side": "pipeline"})
    if done.returncode:
        raise BenchmarkError(f"{name} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    tokens = sum(len((text or "").split()) + 1 for text in result["texts"])
    versions = ", ".join(f"{package} {found}" for package, found in result["versions"].items())
    return Timed(f"{name} ({versions})", len(prompts), tokens, result["seconds"])


def timed(name: str, sample: Callable[[Sequence[int]], int], count: int) -> Timed:
    sample(range(min(4, count)))  # warms up
    started = time.perf_counter()
    tokens = sample(range(count))
    return Timed(name, count, tokens, time.perf_counter() - started)


def report(chosen: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ppo.build_models(folder, chosen.geometry, ppo.MEAN_ANSWER, 1024)
        lengths = ppo.prompt_lengths(chosen.data, 512)
        prompts = ppo.build_prompts(lengths, ppo.GEOMETRIES[chosen.geometry]["vocab_size"], chosen.prompts)
        one = ours(folder, prompts, chosen)
        peers = {
            "a": with_generate(folder, prompts, chosen),
            "b": with_distilabel(folder, prompts[: chosen.peer_prompts], chosen),
        }
    lines = [
        f"{machine(chosen, chosen.dtype, 'torch', 'transformers')}; geometry {chosen.geometry} "
        f"{json.dumps(ppo.GEOMETRIES[chosen.geometry])}; {datetime.date.today()}.",
        "",
        "| side | answers | seconds | answers/s | tokens of an answer | ours is faster by | target |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, side in (("", one), *peers.items()):
        ratio = one.pace / side.pace
        told = f"{ratio:.2f}x | {TARGETS[key]:g}x, {'met' if ratio >= TARGETS[key] else 'MISSED'}" if key else " | "
        lines.append(
            f"| {side.name} | {side.answers} | {side.seconds:.1f} | {side.pace:.2f} | {side.tokens / side.answers:.1f} "
            f"| {told} |"
        )
    return "\n".join(lines)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--peer-prompts", type=int, default=256, help="of (b)")
    parser.add_argument("--geometry", choices=ppo.GEOMETRIES, default="small")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of our batches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all sides' weights")
    parser.add_argument("--data", type=Path, default=ppo.DATA)
    parser.add_argument("--distilabel-python", type=Path, metavar="PYTHON", help="of an environment with distilabel")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    chosen = parse(words)
    errors = (BenchmarkError, ppo.BenchmarkError, IngestError)
    publish("generation", chosen.markdown, lambda: report(chosen), *errors)


if __name__ == "__main__":
    main()
