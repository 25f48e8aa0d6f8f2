"""The helpful-only model's own answers, against a fake model."""

from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.helpful import helpful_answers
from rlaif_assets.settings import SlCaiCheckpointSettings
from tests.feedback.fakes import PROMPTS, FakeModel, local

SETTINGS = SlCaiCheckpointSettings(helpful_max_new_tokens=32, seed=3)


def test_requests_are_answers_and_rejections_and_an_answer_that_did_not_end_is_rejected():
    whole, none = helpful_answers(local(FakeModel()), PROMPTS, 20, SETTINGS, silent)
    assert len(whole) == 20 and not none
    cut = {answer.text for answer in whole[3::5]}
    answers, rejections = helpful_answers(
        local(FakeModel(ends=lambda text: text not in cut)), PROMPTS, 20, SETTINGS, silent
    )
    assert answers == [answer for answer in whole if answer.text not in cut]
    assert {rejection.text for rejection in rejections} == cut and len(answers) + len(rejections) == 20
    assert {rejection.reason for rejection in rejections} == {"not finished within max_new_tokens=32"}
