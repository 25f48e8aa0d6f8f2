"""What an evaluation could not read is told, not lost."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlaif_assets.assets import evaluation as asset
from rlaif_assets.evaluation import duels, labels
from rlaif_assets.records import JudgingConstitution, Prompt, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings, ResponsePairsSettings

REFUSED = Rejection("p", "too long")


def test_label_pairs_that_were_rejected_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "sample_pairs", lambda *_: ([], [REFUSED, REFUSED]))
    monkeypatch.setattr(labels, "judge_pairs", lambda *_: ([], [REFUSED]))
    monkeypatch.setattr(labels, "stored_label_metrics", lambda *_: {"pairs": 0})
    judge: Any = SimpleNamespace(fingerprint="judge")
    settings = ResponsePairsSettings(), HarmlessnessPreferencesSettings()
    found = labels.new_label_metrics(judge, judge, JudgingConstitution((), ()), [], *settings, lambda *_: None)
    assert found == {"pairs": 0, "rejected_pairs": 3}


def test_duels_that_could_not_be_read_reach_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt("p", ({"role": "user", "content": "q"},), "test", "unknown", "file")
    monkeypatch.setattr(duels, "judge_duels", lambda *_: ({}, [REFUSED]))
    monkeypatch.setattr(asset, "judge_of", lambda _: SimpleNamespace(fingerprint="judge"))
    monkeypatch.setattr(asset, "judging_settings_of", lambda _: HarmlessnessPreferencesSettings())
    stage = SimpleNamespace(
        prompts=lambda *_, **__: [prompt],
        rows=lambda *_: [],
        progress=lambda *_: None,
    )
    assert asset._judged_duels(cast(Any, stage), []) == ({}, False, [REFUSED])
