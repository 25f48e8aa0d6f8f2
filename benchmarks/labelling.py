"""How many pairs a second a local judge labels, against what people use for it, on the same model and questions.

    python -m benchmarks.labelling [--pairs 4] [--peer-pairs 1] [--distilabel-python PATH] [--markdown FILE]

Every pair is asked about under all principles of the constitution and in both orders, zero-shot and few-shot in the
paper's order, and few-shot with the principle last. The model has the geometry of a known one and random weights; the
pairs are those of a file of human comparisons, one of each stratum of length. The peers read fewer pairs, those of
median length, since they take so much longer: sides are compared by tokens of questions per second. Peers:
(a) one padded batch per pair and all logits; (b) each letter scored as a continuation, a padded batch per pair and
letter; (c) distilabel's TransformersLLM with one new token, which is its verdict, in an environment of its own, or a
transformers pipeline at batch 1. For (a) and (b) turning text into tokens is not counted; for ours and (c) it is.
Labels of (a), (b) and ours must be equal within TOLERANCE, and the verdicts of (c) those of ours, before any time is
told.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.utils.logging import disable_progress_bar

from benchmarks.marked_page import MarkerError, around_results, put_results
from rlaif_assets.feedback.judge import LocalJudge, Reading
from rlaif_assets.feedback.judging import option_probability
from rlaif_assets.ingest.comparisons import comparisons_of_rows
from rlaif_assets.ingest.constitution import read_constitution
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.language_models.batching import pad
from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import LocalModel, choose_device, option_tokens
from rlaif_assets.language_models.prefix_scores import LEAST_SHARED
from rlaif_assets.language_models.prefix_tree import prefix_tree
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, JUDGE_PREFILL, judge_messages
from rlaif_assets.records import Comparison, JudgingConstitution, Message
from rlaif_assets.settings import ComputeSettings, HelpfulnessPreferencesSettings

DATA = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # of labels
CLOSE = 1e-3  # log-odds so near to zero give no verdict
PEERS = {"a": "padded batch per pair, all logits", "b": "each letter a continuation", "c": "one new token"}

LLAMA = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 8192}
GEOMETRIES: dict[str, PreTrainedConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=1 / 24,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        **LLAMA,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **LLAMA,
    ),
}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No token holds a blank and the letter of an option, so that each option has one spelling for all sides.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?(?![AB])\p{L}+|\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class BenchmarkError(ValueError):
    """Sides that differ, or something that the benchmark needs and does not have."""


@dataclass(frozen=True)
class Scenario:
    name: str
    few_shot: bool
    position: Literal["before", "after"]
    targets: dict[str, float]  # by peer: ours at least so many times faster


SCENARIOS = {
    "zero-shot": Scenario("zero-shot, paper's order", False, "before", {"a": 4, "b": 15, "c": 20}),
    "few-shot": Scenario("few-shot, paper's order", True, "before", {"a": 8, "b": 15, "c": 20}),
    "principle-last": Scenario("few-shot, principle last", True, "after", {"a": 15, "b": 15, "c": 20}),
}


@dataclass(frozen=True)
class Question:
    """A two-option question and the ids that a side reads before the letter."""

    messages: list[Message]
    ids: list[int]


@dataclass(frozen=True)
class Timed:
    """What a side said of `questions` (p of the first option, or None and a verdict) and how long it took."""

    questions: int
    tokens: int
    seconds: float
    p_first: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def rate(self) -> float:
        """Tokens of questions per second."""
        return self.tokens / self.seconds


# Model, tokenizer, questions


def build_model(chosen: argparse.Namespace, texts: Sequence[str]) -> LocalModel:
    """Random weights in the chosen geometry, and a tokenizer made of `texts`."""
    config, device = GEOMETRIES[chosen.geometry], choose_device(ComputeSettings(device=chosen.device))
    tokenizer = build_tokenizer(texts, min(16_384, config.vocab_size))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, chosen.dtype))
    return LocalModel(model.to(device).eval(), tokenizer, "random weights", device, chosen.batch_tokens)


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def read_pairs(path: Path) -> list[Comparison]:
    """The comparisons of a file, shortest first."""
    if not path.is_file():
        raise BenchmarkError(f"{path} is not a file: name one with human comparisons (chosen, rejected) with --data")
    found, _ = comparisons_of_rows(HelpfulnessPreferencesSettings(path=str(path), max_characters=100_000))
    return sorted(found, key=lambda pair: sum(map(len, pair_texts(pair))))


def pair_texts(pair: Comparison) -> list[str]:
    return [*(message["content"] for message in pair.messages), pair.response_a, pair.response_b]


def draw_pairs(pairs: Sequence[Comparison], count: int) -> list[Comparison]:
    """The middle one of each of `count` equal parts of pairs sorted by length."""
    if count > len(pairs):
        raise BenchmarkError(f"{count} pairs are wanted and the file has {len(pairs)}: lower --pairs")
    return [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]


def middle(pairs: Sequence[Any], count: int) -> list[Any]:
    first = max(0, (len(pairs) - count) // 2)
    return list(pairs[first : first + count])


def ask(
    model: LocalModel, pairs: Sequence[Comparison], constitution: JudgingConstitution, scenario: Scenario
) -> list[list[Question]]:
    """Every pair's questions: under each principle in both orders."""
    opening, options = option_tokens(model.tokenizer, JUDGE_PREFILL, JUDGE_OPTIONS)
    if any(len(ids) > 1 for ids in options):
        raise BenchmarkError(
            f"the tokenizer spells an option in several ways ({options}): continuations would miss some"
        )
    examples = constitution.examples if scenario.few_shot else ()

    def question(pair: Comparison, first: str, second: str, principle: str) -> Question:
        messages = judge_messages(pair.messages, first, second, principle, examples, scenario.position)
        return Question(messages, encode_prompt(model.tokenizer, messages) + list(opening))

    return [
        [
            question(pair, first, second, principle.text)
            for principle in constitution.principles
            for first, second in ((pair.response_a, pair.response_b), (pair.response_b, pair.response_a))
        ]
        for pair in pairs
    ]


# Sides


def ours(model: LocalModel, groups: Sequence[Sequence[Question]]) -> list[float]:
    asked = [question.messages for group in groups for question in group]
    found: dict[int, float] = {}
    for outcomes in LocalJudge(model).read(asked):
        for i, outcome in outcomes.items():
            if not isinstance(outcome, Reading):
                raise BenchmarkError(f"question {i}: {outcome.reason}")
            found[i] = option_probability(outcome.logprob_first, outcome.logprob_second)
    return [found[i] for i in range(len(asked))]


@torch.inference_mode()
def padded_batches(model: LocalModel, groups: Sequence[Sequence[Question]]) -> list[float]:
    """(a) The plain loop: a left-padded batch per pair, all logits, the last ones are looked at."""
    options = letter_ids(model)
    found: list[float] = []
    for group in groups:
        ids, mask = left_padded(model, [question.ids for question in group])
        last = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1].float().log_softmax(-1)
        found += [option_probability(*row) for row in last[:, options].tolist()]
    return found


@torch.inference_mode()
def continuations(model: LocalModel, groups: Sequence[Sequence[Question]]) -> list[float]:
    """(b) Each letter is appended, and its log-probability read from the logits of the whole sequence."""
    found: list[float] = []
    for group in groups:
        letters: list[list[float]] = []
        for letter in letter_ids(model):
            ids, mask = left_padded(model, [[*question.ids, letter] for question in group])
            logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            letters.append(logits[:, -2].float().log_softmax(-1)[:, letter].tolist())
        found += [option_probability(first, second) for first, second in zip(*letters, strict=True)]
    return found


def letter_ids(model: LocalModel) -> list[int]:
    return [ids[0] for ids in option_tokens(model.tokenizer, JUDGE_PREFILL, JUDGE_OPTIONS)[1]]


def left_padded(model: LocalModel, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    mask = pad([[1] * len(row) for row in rows], width, left=True)
    return pad(rows, width, left=True).to(model.device), mask.to(model.device)


def one_token(model: LocalModel, questions: Sequence[Question], python: Path | None, folder: Path) -> Timed:
    """(c) One new token by distilabel, or by a pipeline where `python` is None or has no distilabel that runs."""
    prompts = [str(model.tokenizer.decode(question.ids, clean_up_tokenization_spaces=False)) for question in questions]
    if any(model.tokenizer(text)["input_ids"] != q.ids for text, q in zip(prompts, questions, strict=True)):
        raise BenchmarkError("a prompt as text does not have the ids that the other sides read")
    request: dict[str, Any] = {
        "folder": str(folder),
        "prompts": prompts,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
    }
    reason = "no --distilabel-python"
    if python is not None:
        done = run_side(python, request | {"side": "distilabel"})
        if done.returncode == 0:
            return read_side(done, questions, "distilabel TransformersLLM")
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason = f"distilabel could not run: {last[:150]}"
        say(reason)
    done = run_side(Path(sys.executable), request | {"side": "pipeline"})
    if done.returncode:
        raise BenchmarkError(f"the pipeline failed:\n{done.stderr[-3000:]}")
    return read_side(done, questions, f"transformers pipeline, batch 1 ({reason})")


def run_side(python: Path, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("peer_generation.py")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    offline.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(python), str(script)], input=json.dumps(request), capture_output=True, text=True, env=offline, check=False
    )


def read_side(done: subprocess.CompletedProcess[str], questions: Sequence[Question], name: str) -> Timed:
    result = json.loads(done.stdout.strip().splitlines()[-1])
    versions = ", ".join(f"{package} {found}" for package, found in result["versions"].items())
    return Timed(
        len(questions),
        sum(len(question.ids) for question in questions),
        result["seconds"],
        verdicts=[(text or "").strip() for text in result["texts"]],
        note=f"{name}; {versions}",
    )


def save_for_one_token(model: LocalModel, folder: Path) -> None:
    """Weights and tokenizer without chat template; the model's own settings let it generate the two letters alone.

    Written so that transformers 4 reads it too.
    """
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    for template in folder.glob("*.jinja"):
        template.unlink()
    config: Any = model.model.config
    letters = letter_ids(model)
    others = [i for i in range(config.vocab_size) if i not in letters]
    rewrite_json(folder / "generation_config.json", {"suppress_tokens": others})
    rewrite_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    rewrite_json(folder / "config.json", {"rope_theta": config.rope_parameters["rope_theta"]})


def rewrite_json(file: Path, values: dict[str, Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("chat_template", None)
    file.write_text(json.dumps(content | values), encoding="utf-8")


# Race


def timed(side: Callable[[], list[float]], groups: Sequence[Sequence[Question]], repeats: int) -> Timed:
    seconds: list[float] = []
    found: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = side()
        seconds.append(time.perf_counter() - started)
    tokens = sum(len(question.ids) for group in groups for question in group)
    return Timed(sum(map(len, groups)), tokens, statistics.median(seconds), found)


def race(
    model: LocalModel, groups: Sequence[Sequence[Question]], chosen: argparse.Namespace, folder: Path
) -> dict[str, Timed]:
    """Every side's time, by its letter. Raises BenchmarkError where a side says something else than ours."""
    peer_groups = middle(groups, chosen.peer_pairs)
    asked = [question for group in peer_groups for question in group]
    few = asked[:: max(1, len(asked) // chosen.one_token_questions)][: chosen.one_token_questions]
    warm = [group[:1] for group in groups[:1]]
    sides: dict[str, Timed] = {}
    for letter, side, its in (
        ("ours", ours, groups),
        ("a", padded_batches, peer_groups),
        ("b", continuations, peer_groups),
    ):
        say(f"  {letter}: {sum(map(len, its))} questions")
        side(model, warm)
        sides[letter] = timed(lambda side=side, its=its: side(model, its), its, chosen.repeats)
    say(f"  c: {len(few)} questions")
    sides["c"] = one_token(model, few, chosen.distilabel_python, folder)
    mine = {id(q): p for q, p in zip((q for group in groups for q in group), sides["ours"].p_first, strict=True)}
    compare(sides, [mine[id(q)] for q in asked], [mine[id(q)] for q in few], TOLERANCE[chosen.dtype])
    return sides


def compare(sides: dict[str, Timed], asked: Sequence[float], few: Sequence[float], tolerance: float) -> None:
    """Raises BenchmarkError unless (a) and (b) say what ours does of `asked`, and (c) chooses as ours does in `few`."""
    for letter in ("a", "b"):
        gaps = [abs(p - q) for p, q in zip(sides[letter].p_first, asked, strict=True)]
        gap = math.nan if any(map(math.isnan, gaps)) else max(gaps)
        if not gap <= tolerance:
            raise BenchmarkError(f"labels of ({letter}) and ours differ by {gap:.2g}, more than {tolerance}")
    for verdict, p in zip(sides["c"].verdicts, few, strict=True):
        if abs(math.log(p) - math.log1p(-p)) > CLOSE and verdict != JUDGE_OPTIONS[p < 0.5]:
            raise BenchmarkError(f"(c) chose {verdict!r} where ours gives the first option {p:.6f}")


# Table


def table_rows(scenario: Scenario, groups: Sequence[Sequence[Question]], sides: dict[str, Timed]) -> Iterator[str]:
    mine = sides["ours"]
    per_pair = mine.tokens / len(groups)
    for letter, side in sides.items():
        name = "ours" if letter == "ours" else f"({letter}) {PEERS[letter]}"
        ratio, target = mine.rate / side.rate, scenario.targets.get(letter)
        verdict = "" if target is None else f"{target:g}x, {'met' if ratio >= target else 'not met'}"
        told = "" if letter == "ours" else f"{ratio:.1f}x"
        yield (
            f"| {scenario.name} | {name} | {side.questions} | {side.seconds:.1f} | {side.rate:,.0f} | "
            f"{60 * side.rate / per_pair:.2f} | {told} | {verdict} |"
        )


def table(results: Sequence[tuple[Scenario, Sequence[Sequence[Question]], dict[str, Timed]]], about: str) -> str:
    lines = [
        "| scenario | side | questions | seconds | question tokens/s | pairs/min | ours is faster by | target |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *(row for result in results for row in table_rows(*result)),
        "",
    ]
    for scenario, groups, sides in results:
        rows = [question.ids for group in groups for question in group]
        read = sum(len(segment.ids) for segment in prefix_tree(rows, LEAST_SHARED, max(map(len, rows))))
        lines.append(
            f"- {scenario.name}: {len(groups)} pairs, each {sides['ours'].tokens / len(groups):,.0f} tokens in "
            f"{len(groups[0])} questions; ours reads one token of {sides['ours'].tokens / read:.1f}."
        )
    lines += [f"- (c): {note}." for note in dict.fromkeys(sides["c"].note for _, _, sides in results)]
    return "\n".join([*lines, f"- {about}"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(chosen: argparse.Namespace) -> str:
    if chosen.markdown is not None:
        around_results(chosen.markdown, "labelling")  # refused here, before anything is timed
    if chosen.distilabel_python is not None and not chosen.distilabel_python.is_file():
        raise BenchmarkError(f"--distilabel-python {chosen.distilabel_python} does not exist")
    disable_progress_bar()
    torch.set_num_threads(chosen.threads)
    pairs = read_pairs(chosen.data)
    drawn = draw_pairs(pairs, chosen.pairs)
    _, constitution = read_constitution(chosen.constitution)
    say(f"tokenizer of {len(pairs)} pairs, {chosen.geometry} with random weights")
    texts = [text for pair in pairs for text in pair_texts(pair)] + [p.text for p in constitution.principles]
    model = build_model(chosen, texts)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        save_for_one_token(model, Path(folder))
        for name in chosen.scenarios.split(","):
            say(SCENARIOS[name].name)
            groups = ask(model, drawn, constitution, SCENARIOS[name])
            results.append((SCENARIOS[name], groups, race(model, groups, chosen, Path(folder))))
    place = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {chosen.threads} threads"
    about = (
        f"{chosen.geometry} geometry, random weights, {chosen.dtype}; {place}; compute.batch_tokens of ours "
        f"{chosen.batch_tokens}; labels equal within {TOLERANCE[chosen.dtype]:g}; median of {chosen.repeats}; "
        f"torch {torch.__version__}, transformers {version('transformers')}, Python {platform.python_version()}; "
        f"{datetime.date.today()}."
    )
    return table(results, about)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def scenario_names(text: str) -> str:
    unknown = set(text.split(",")) - SCENARIOS.keys()
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}: there are {', '.join(SCENARIOS)}")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, metavar="FILE", help="human comparisons: chosen, rejected")
    parser.add_argument("--constitution", default="default", help="'default' or a constitution file")
    parser.add_argument("--scenarios", type=scenario_names, default=",".join(SCENARIOS))
    parser.add_argument("--geometry", choices=GEOMETRIES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda:i")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--batch-tokens", type=positive, default=2048, help="compute.batch_tokens of ours")
    parser.add_argument("--pairs", type=positive, default=4, help="that ours labels")
    parser.add_argument("--peer-pairs", type=positive, default=1, help="of them, that (a) and (b) label")
    parser.add_argument("--one-token-questions", type=positive, default=8, help="of theirs, that (c) answers")
    parser.add_argument("--repeats", type=positive, default=1, help="of ours, (a) and (b); the median counts")
    parser.add_argument("--distilabel-python", type=Path, metavar="PYTHON", help="of an environment with distilabel")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between this file's markers")
    chosen = parser.parse_args(arguments)
    try:
        found = run(chosen)
        print(found)
        if chosen.markdown is not None:
            put_results(chosen.markdown, "labelling", found)
    except (BenchmarkError, IngestError, MarkerError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
