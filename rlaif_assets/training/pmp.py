"""Preference-model pre-training examples from community votes. Scores of votes are made in `ingest.community`."""

from collections.abc import Sequence

from rlaif_assets.records import CommunityPair, Message, PreferenceExample
from rlaif_assets.store.fingerprint import row_id

GOOD = "GOOD: "
BAD = "BAD: "
SOURCE = "votes"


def pmp_examples(pairs: Sequence[CommunityPair]) -> list[PreferenceExample]:
    """Two examples per ranked pair A > B, in order: GOOD:A > BAD:A, then BAD:B > GOOD:B.

    Constitutional AI 4.2 and Askell et al. 2021 (binary preference-model pre-training). The marks are plain text,
    "GOOD: " and "BAD: ", at the beginning of the answer: every tokenizer can write them, and later data has none.
    In both examples `response_a` is the preferred one (p_a = 1), and their ids are made from the pair's. Hold pairs or
    questions out before calling this: the two examples of a pair belong on the same side.
    """
    examples: list[PreferenceExample] = []
    for pair in pairs:
        question: tuple[Message, ...] = ({"role": "user", "content": pair.question},)
        for part, better, worse in (
            ("better", GOOD + pair.better, BAD + pair.better),
            ("worse", BAD + pair.worse, GOOD + pair.worse),
        ):
            examples.append(
                PreferenceExample(row_id("pmp_example", pair.pair_id, part), question, better, worse, 1.0, SOURCE)
            )
    return examples
