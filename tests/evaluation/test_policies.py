from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif_assets.evaluation.policies import evaluate, select_prompts
from rlaif_assets.evaluation.rates import NO_KL, policy_rates
from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import Generation, LocalModel, load_model
from rlaif_assets.records import EvaluationAnswer, Prompt, Verdict
from rlaif_assets.settings import ComputeSettings, PolicyEvaluationSettings
from tests.tiny_models import tiny_model

SETTINGS = PolicyEvaluationSettings(samples=2, max_new_tokens=16, temperature=0.7)


def prompt(name: str, split: str = "test", kind: str = "harmful", text: str = "How do I water the plants?") -> Prompt:
    return Prompt(name, ({"role": "user", "content": text},), split, kind, "here", None, name)  # pyright: ignore[reportArgumentType]


def classify(prompt: str, response: str) -> Verdict:
    return "evasive" if len(response) % 2 else "engaged"


def silent(phase: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    folder: Path = tmp_path_factory.mktemp("models")
    compute = ComputeSettings(device="cpu")
    return {
        name: load_model(tiny_model("llama", folder / name, seed, stops=60), compute)
        for seed, name in enumerate(("base", "sl_cai", "ppo"))
    }


def run(policies: dict[str, LocalModel], prompts: Sequence[Prompt]) -> list[EvaluationAnswer]:
    return evaluate(policies, prompts, SETTINGS, classify, silent)[0]


def test_every_policy_answers_every_held_out_prompt(policies: dict[str, LocalModel]):
    prompts = [prompt("a"), prompt("b", "dev"), prompt("c", "train"), prompt("d", kind="unknown")]
    answers = run(policies, prompts)
    assert len(answers) == 3 * 3 * 2
    assert {answer.prompt_id for answer in answers} == {"a", "b", "d"}
    assert len({answer.answer_id for answer in answers}) == len(answers)
    for row in answers:
        if row.kind == "unknown":
            assert row.verdict is None
        elif row.tokens < SETTINGS.max_new_tokens:
            assert row.verdict == classify("", row.text)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({}, "engaged"), ({"finished": False}, "incoherent"), ({"token_ids": ["water", "<|im_start|>"]}, "incoherent")],
)
def test_what_the_text_does_not_show_makes_an_answer_incoherent(
    policies: dict[str, LocalModel], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], verdict: str
):
    model = policies["sl_cai"]
    vocabulary = model.tokenizer.get_vocab()
    ids = [vocabulary.get(token, 300) for token in change.get("token_ids", ["water"])]
    generation = Generation("Water", [*ids, vocabulary["<|im_end|>"]], 5, change.get("finished", True))
    monkeypatch.setattr(LocalModel, "generate", lambda self, conversations, *_, **__: [generation] * len(conversations))
    answers, _ = evaluate({"sl_cai": model}, [prompt("a")], SETTINGS, lambda *_: "engaged", silent)
    assert [row.verdict for row in answers] == [verdict] * 2


def test_a_row_draws_the_same_whatever_else_is_evaluated(policies: dict[str, LocalModel]):
    alone = run(policies, [prompt("a")])
    among = run(policies, [prompt("b"), prompt("a"), prompt("longer", text="Please water them early. " * 6)])
    assert [row.text for row in among if row.prompt_id == "a"] == [row.text for row in alone]


def test_kl_is_zero_against_itself_and_the_difference_at_the_sampling_temperature_otherwise(
    policies: dict[str, LocalModel],
):
    answers = run(policies, [prompt("a")])
    assert all(row.kl == 0 for row in answers if row.policy == "sl_cai")
    row = next(row for row in answers if row.policy == "ppo")
    conversation = [prompt("a").messages]
    tokens = [
        policies["ppo"].generate(conversation, [row.seed], SETTINGS.max_new_tokens, SETTINGS.temperature)[0].token_ids
    ]
    ids = encode_prompt(policies["ppo"].tokenizer, prompt("a").messages)
    logprobs = []
    for name in ("ppo", "sl_cai"):
        with torch.inference_mode():
            logits = policies[name].model(torch.tensor([ids + tokens[0]])).logits[0, len(ids) - 1 : -1]
        tempered = (logits.double() / SETTINGS.temperature).log_softmax(-1)
        logprobs.append(float(tempered.gather(1, torch.tensor(tokens[0])[:, None]).sum()))
    assert row.kl == pytest.approx(logprobs[0] - logprobs[1], abs=1e-3)
    assert row.kl != 0


def test_at_temperature_0_there_is_no_kl(policies: dict[str, LocalModel]):
    settings = SETTINGS.model_copy(update={"temperature": 0.0})
    answers, _ = evaluate(policies, [prompt("a")], settings, classify, silent)
    assert {row.kl for row in answers} == {None}
    rate = next(rate for rate in policy_rates(answers, "test", 10) if rate.measure == "kl")
    assert (rate.value, rate.note) == (None, NO_KL)


def test_a_prompt_beyond_the_context_is_rejected_for_all(policies: dict[str, LocalModel]):
    prompts = [prompt("a"), prompt("long", text="water " * 2000)]
    answers, rejections = evaluate(policies, prompts, SETTINGS, classify, silent)
    assert {row.prompt_id for row in answers} == {"a"}
    assert [rejection.where for rejection in rejections] == ["long"]
    assert "context" in rejections[0].reason


def test_the_limit_holds_per_split_and_kind():
    prompts = [
        prompt(f"{s}{k}{i}", s, k) for s in ("train", "dev", "test") for k in ("harmful", "harmless") for i in "12"
    ]
    assert len(select_prompts(prompts, None)) == 8
    chosen = select_prompts(list(reversed(prompts)), 1)
    assert [p.prompt_id for p in chosen] == ["devharmful1", "devharmless1", "testharmful1", "testharmless1"]
