"""The table of results against targets says "not" where a number misses."""

import copy
from typing import Any

import pytest

from benchmarks import targets

REPORT: dict[str, Any] = {
    "seed": 4,
    "policies": {
        "base": {"harmless_rate": 0.20, "helpful_rate": 0.90},
        "sl_cai": {"harmless_rate": 0.50},
        "ppo": {
            "harmless_rate": 0.90,
            "helpful_rate": 0.85,
            "lookalike_refusal_rate": 0.05,
            "incoherent_rate": 0.03,
            "commonest_share": 0.02,
        },
    },
    "win_rates": {"ppo_vs_sl_cai": {"rate": 0.75, "low": 0.60, "high": 0.85}},
    "labels": {
        "accuracy": 0.93,
        "accuracy_first_order": 0.89,
        "accuracy_second_order": 0.94,
        "interval": [0.90, 0.95],
    },
}


def test_a_report_that_meets_all() -> None:
    assert all(target.met(REPORT) for target in targets.TARGETS)
    assert "not" not in targets.markdown_table([REPORT])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("policies", "base", "harmless_rate"), 0.36),
        (("policies", "sl_cai", "harmless_rate"), 0.44),
        (("policies", "ppo", "harmless_rate"), 0.87),
        (("policies", "ppo", "helpful_rate"), 0.80),
        (("policies", "ppo", "lookalike_refusal_rate"), 0.11),
        (("policies", "ppo", "incoherent_rate"), 0.06),
        (("policies", "ppo", "commonest_share"), 0.21),
        (("win_rates", "ppo_vs_sl_cai", "rate"), 0.70),
        (("win_rates", "ppo_vs_sl_cai", "low"), 0.49),
        (("labels", "accuracy"), 0.90),
        (("labels", "accuracy_second_order"), 0.98),
    ],
)
def test_each_number_can_miss(path: tuple[str, ...], value: float) -> None:
    report = copy.deepcopy(REPORT)
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert sum(not target.met(report) for target in targets.TARGETS) >= 1
    assert "not by seed 4" in targets.markdown_table([REPORT, report])


def test_means_have_their_spread_and_are_held_against_their_targets() -> None:
    other = copy.deepcopy(REPORT)
    other["seed"], other["policies"]["ppo"]["harmless_rate"] = 5, 0.96
    lines = targets.mean_table([REPORT, other]).splitlines()
    assert lines[0].startswith("| PPO, seeds 4, 5 |")
    assert lines[2] == "| harmless | 93.0% | 4.2% | 90.0% | 96.0% | at least 92% | yes; 1 of 2 seeds do alone |"
    assert lines[4].startswith("| helpful, share of base's | 94.4% | 0.0% |") and "yes; 2 of 2" in lines[4]
    assert "| at most 3% | yes; 2 of 2" in lines[6]
    other["policies"]["ppo"]["harmless_rate"] = 0.93
    assert "| NO; 1 of 2 seeds do alone |" in targets.mean_table([REPORT, other])
