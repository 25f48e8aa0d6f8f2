"""Which of the snapshots that a policy was made from it learned from."""

from collections.abc import Mapping, Sequence
from typing import Any

Made = Mapping[str, Mapping[str, Any]]  # the policy's ancestors by asset, as of `trace_policy`


def learned_from(snapshots: Sequence[Mapping[str, Any]], policy: str) -> Made:
    """By asset the snapshot that the policy learned from. Where an asset is there in several versions, as where a model
    on half of the labels was made from others, the way through reward model and SL-CAI counts."""
    known = {one["snapshot_id"]: one for one in snapshots}
    made: dict[str, Any] = {}

    def visit(snapshot_id: str) -> None:
        one = known.pop(snapshot_id, None)
        if one is None:
            return
        made.setdefault(one["asset"], one)
        for _, upstream in sorted(one["inputs"].items(), key=lambda item: ("_half_" in item[0], item[0])):
            visit(upstream)

    visit(policy)
    return made
