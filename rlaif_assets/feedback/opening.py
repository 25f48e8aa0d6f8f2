"""From what is known of a feedback model to the judge that it makes: a local model or an endpoint, with reasons or not.

`External` is a row of the table `external_models`: what was found when the model was recorded.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rlaif_assets.feedback.cot_judge import EndpointCotJudge, LocalCotJudge, cot_fingerprint
from rlaif_assets.feedback.endpoint_judge import EndpointJudge, detect_method, endpoint_judge_fingerprint
from rlaif_assets.feedback.judge import Judge, LocalJudge
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.settings import FeedbackModelSettings, HarmlessnessPreferencesSettings
from rlaif_assets.store.judgements import JudgementStore

External = Mapping[str, Any]
Connect = Callable[[str, str, str | None], Endpoint]
"""The endpoint at this URL under this name, checked to answer as this version where one is given."""


def ask_endpoint(settings: FeedbackModelSettings, connect: Connect) -> tuple[dict[str, Any], str, int]:
    """Asks once or twice, as a test: the row to record (its name in replies is its `revision`), how verdicts are read
    and why, and the tokens spent. Raises ModelError."""
    if not settings.model or settings.revision:
        raise ModelError("an endpoint needs feedback_model.model, the name it serves the model under, and no revision")
    endpoint = connect(settings.source, settings.model, None)
    method, version, reason = detect_method(endpoint, settings)
    row = {
        "fingerprint": connect(settings.source, settings.model, version).fingerprint,
        "source": endpoint.url,
        "revision": version,
        "model": settings.model,
        "verdicts": method,
    }
    return row, f"verdicts are read by {method}: {reason}", endpoint.tokens


def local_judge(model: LocalModel, judging: HarmlessnessPreferencesSettings) -> Judge:
    judge = LocalJudge(model)
    return LocalCotJudge(judge, judging) if judging.chain_of_thought else judge


def endpoint_judge(
    row: External, settings: FeedbackModelSettings, judging: HarmlessnessPreferencesSettings, connect: Connect
) -> Judge:
    """The endpoint asked as it was recorded."""
    endpoint = connect(row["source"], row["model"], row["revision"])
    judge = EndpointJudge(endpoint, row["verdicts"], settings)
    return EndpointCotJudge(judge, judging) if judging.chain_of_thought else judge


def prove(judge: Judge, store: JudgementStore) -> None:
    """Tells an endpoint whether it has answered as this judge before: see `Endpoint.proven`."""
    hosted = judge.judge if isinstance(judge, EndpointCotJudge) else judge
    if isinstance(hosted, EndpointJudge):
        store.absorb()
        hosted.endpoint.proven = store.speed(judge.fingerprint).seconds is not None


def judge_fingerprint(row: External, settings: FeedbackModelSettings, judging: HarmlessnessPreferencesSettings) -> str:
    """The fingerprint of the judge that a recorded model makes; nothing is opened."""
    fingerprint: str = row["fingerprint"]
    if row["verdicts"] is not None:
        fingerprint = endpoint_judge_fingerprint(fingerprint, row["verdicts"], settings)
    return cot_fingerprint(fingerprint, judging) if judging.chain_of_thought else fingerprint
