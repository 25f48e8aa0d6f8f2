"""Steps 1 and 3 on tiny random models of three architectures: the fake's methods are those of the real thing."""

import math

import pytest

from rlaif_assets.feedback.audits import Evidence, audit
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import LocalJudge
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import label_metrics, make_labels
from rlaif_assets.feedback.pairs import sample_answers, sample_pairs
from rlaif_assets.feedback.revision import revise
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.settings import (
    AuditsSettings,
    ComputeSettings,
    HarmlessnessPreferencesSettings,
    ResponsePairsSettings,
    RevisedResponsesSettings,
)
from tests.feedback.fakes import CRITIQUE, JUDGING, PROMPTS, make_prompt
from tests.tiny_models import CONTEXT, KINDS, tiny_model

LONG = make_prompt("x " * CONTEXT)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tiny_model(request.param, tmp_path_factory.mktemp("model"))
    return load_model(folder, ComputeSettings(device="cpu", threads=1, batch_tokens=2048))


@pytest.fixture(scope="module", params=KINDS)
def brief(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """One whose answers end, as those of a pair must."""
    folder = tiny_model(request.param, tmp_path_factory.mktemp("brief"), stops=60)
    return load_model(folder, ComputeSettings(device="cpu", threads=1, batch_tokens=2048))


def test_revise(model: LocalModel):
    settings = RevisedResponsesSettings(rounds=2, few_shot=1, max_new_tokens=6)
    rows, rejections = revise(model, CRITIQUE, [*PROMPTS[:4], LONG], settings, silent)
    assert len(rows) == (5 - len(rejections)) * 3 and rows
    assert rejections[0].where == LONG.prompt_id and "context" in rejections[0].reason
    assert all(row.text and (row.critique or row.round == 0) for row in rows)
    assert all(0 < row.tokens_out <= 12 and row.tokens_in > 0 for row in rows)
    alone, _ = revise(model, CRITIQUE, PROMPTS[2:3], settings, silent)
    assert alone == [row for row in rows if row.prompt_id == PROMPTS[2].prompt_id]


def test_sample_answers(model: LocalModel):
    answers, rejections = sample_answers(model, [*PROMPTS, LONG], "helpful", 1.0, 6, 0)
    assert len(answers) + len(rejections) == 13 and len(answers) > 6
    assert LONG.prompt_id in {rejection.where for rejection in rejections}
    assert all(answer.text and 0 < answer.tokens_out <= 6 for answer in answers)


def test_pairs_judgements_labels_and_audits(brief: LocalModel):
    model, sampling = brief, ResponsePairsSettings(max_new_tokens=32, pairs_per_prompt=2)
    pairs, rejections = sample_pairs(model, [*PROMPTS, LONG], sampling, silent)
    assert len(pairs) + len(rejections) == 26 and len(pairs) > 6
    prompts = {prompt.prompt_id: prompt for prompt in PROMPTS}
    settings = HarmlessnessPreferencesSettings(few_shot=1)
    judgements, refused = judge_pairs(LocalJudge(model), JUDGING, prompts, pairs, settings, silent)
    assert len(judgements) == 2 * len(pairs) and not refused
    assert all(row.logprob_first < 0 and row.logprob_second < 0 and 0 < row.p_a < 1 for row in judgements)
    assert all(row.judge == model.fingerprint for row in judgements)

    labels = make_labels(judgements)
    for label, ab, ba in zip(labels, judgements[::2], judgements[1::2], strict=True):
        p_ab = math.exp(ab.logprob_first) / (math.exp(ab.logprob_first) + math.exp(ab.logprob_second))
        p_ba = math.exp(ba.logprob_second) / (math.exp(ba.logprob_first) + math.exp(ba.logprob_second))
        assert label.p_a == pytest.approx((p_ab + p_ba) / 2)
    metrics = label_metrics(labels, judgements, lambda label: 0)
    assert metrics["pairs"] == len(pairs)
    evidence = Evidence(labels, judgements, pairs)
    verdicts = {verdict["audit"]: verdict["passed"] for verdict in audit(evidence, AuditsSettings())}
    assert verdicts["both_orders"] and verdicts["verdict_reaches_label"]
    assert not verdicts["letter_mass"]  # a random model spreads its probability over the vocabulary

    alone, _ = judge_pairs(LocalJudge(model), JUDGING, prompts, pairs[3:4], settings, silent)
    for row, batched in zip(alone, judgements[6:8], strict=True):
        assert row.judgement_id == batched.judgement_id and row.p_a == pytest.approx(batched.p_a, abs=1e-5)
