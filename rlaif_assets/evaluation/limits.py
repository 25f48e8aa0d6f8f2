"""What whoever uses a policy has to know before the numbers are believed, for its card and its page."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LIMITS = (
    "The labels are a model's, under its constitution, and carry what it does not see. The numbers are of the "
    "prompts that were held out of training, and of no others. Scores of a reward model can be over-optimised: read "
    "answers before you rely on it."
)
POCKET = "pocket"  # what the settings of sources call the packaged world
PROMPTS = frozenset({"red_team_prompts", "helpful_prompts"})
PEOPLE = {
    "helpfulness_preferences": "the helpfulness comparisons",
    "community_votes": "the community votes",
    "harmlessness_preferences": "the labels that the judge was held against",
}


def simulated(snapshots: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What comes of programs in the place of people: `snapshots` with {asset, settings}, all that a policy was made
    from."""
    pocket = {
        one["asset"]
        for one in snapshots
        if POCKET in (one["settings"].get("path"), one["settings"].get("audits_reference"))
    }
    if pocket & PROMPTS:
        yield (
            "The prompts are of the pocket world, a small written one. What its answers are called (harmful, evasive, "
            "engaged, incoherent), and so every rate and win rate, was decided by that world's rules, applied by a "
            "program: no person has read these answers."
        )
    if told := [what for asset, what in PEOPLE.items() if asset in pocket]:
        yield f"No people were asked for {' and '.join(told)}: programs of the pocket world stand in for them."
