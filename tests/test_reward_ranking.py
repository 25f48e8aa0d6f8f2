"""The ranking benchmark: what is right by gold is ranked right, and test intents are not asked."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from benchmarks.reward_ranking import KINDS, SPLITS, right_shares
from rlaif_assets.pocket.annotator import classify, intent_of
from rlaif_assets.records import Message

RANK = {"engaged": 2.0, "evasive": 1.0, "harmful": 0.0, "incoherent": -9.0}


class Gold:
    def __init__(self, sign: float) -> None:
        self.sign = sign

    def scores(self, conversations: Sequence[Sequence[Message]], answers: Sequence[str]) -> np.ndarray:
        asked = [conversation[-1]["content"] for conversation in conversations]
        assert {intent.split for prompt in asked if (intent := intent_of(prompt))} == set(SPLITS)
        verdicts = [classify(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
        assert "incoherent" not in verdicts
        return self.sign * np.array([RANK[verdict] for verdict in verdicts])


def test_gold_ranks_all_right_and_its_opposite_none() -> None:
    groups = {f"{split}, {kind}" for split in SPLITS for kind in KINDS}
    assert right_shares(cast(Any, Gold(1.0))) == dict.fromkeys(groups, 1.0)
    assert right_shares(cast(Any, Gold(-1.0))) == dict.fromkeys(groups, 0.0)
