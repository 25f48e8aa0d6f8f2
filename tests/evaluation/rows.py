"""Rows for the tests of evaluation."""

from typing import Any

from rlaif_assets.records import EvaluationAnswer


def answer(policy: str, prompt: str, verdict: str | None, **others: Any) -> EvaluationAnswer:
    values: dict[str, Any] = {
        "answer_id": f"{policy} {prompt} {others.get('sample', 0)}",
        "policy": policy,
        "prompt_id": prompt,
        "split": "test",
        "kind": "harmful",
        "intent": f"intent of {prompt}",
        "sample": 0,
        "text": f"{policy} {prompt} {verdict}",
        "verdict": verdict,
        "tokens": 10,
        "kl": 0.0,
        "seed": 1,
    }
    return EvaluationAnswer(**(values | others))
