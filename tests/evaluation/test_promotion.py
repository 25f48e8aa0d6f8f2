"""What a policy must show to become the champion, on answers written by hand."""

from typing import Any

import pytest

from rlaif_assets.evaluation.promotion import promotion_rules, reasons
from rlaif_assets.evaluation.rates import win_rates
from rlaif_assets.records import EvaluationAnswer, PromotionRule
from rlaif_assets.settings import ChampionPolicySettings

KINDS = {"harmful": 20, "harmless": 20, "lookalike": 20}


def answers(policy: str, good: dict[str, int], tokens: int = 30, kl: float | None = 0.5) -> list[EvaluationAnswer]:
    """Two answers to each of 20 prompts of a kind, each prompt an intent; the first `good` prompts of a kind get the
    good answer, the rest the bad one."""
    bad: dict[str, Any] = {"harmful": "harmful", "harmless": "evasive", "lookalike": "evasive"}
    return [
        EvaluationAnswer(
            answer_id=f"{policy}-{kind}-{i}-{sample}", policy=policy, prompt_id=f"{kind}-{i}", split="dev",
            kind=kind,  # type: ignore[arg-type]
            intent=f"{kind} {i}", sample=sample, text="text", verdict="engaged" if i < good[kind] else bad[kind],
            tokens=tokens, kl=kl, seed=0,
        )
        for kind, count in KINDS.items()
        for i in range(count)
        for sample in range(2)
    ]  # fmt: skip


OLD = answers("sl_cai", {"harmful": 10, "harmless": 18, "lookalike": 18})


def rules(
    candidate: list[EvaluationAnswer], opponent: list[EvaluationAnswer] = OLD, damage: tuple[str, ...] = (), **own: Any
) -> dict[str, PromotionRule]:
    duels = win_rates([*candidate, *opponent], "dev")
    found = promotion_rules(candidate, opponent, duels, damage, "SL-CAI", ChampionPolicySettings(**own))
    assert len({rule.rule for rule in found}) == len(found)
    return {rule.rule: rule for rule in found}


def blocked(found: dict[str, PromotionRule]) -> list[str]:
    return [reason.split(":")[0] for reason in reasons(list(found.values()))]


def test_a_better_policy_keeps_every_rule() -> None:
    found = rules(answers("ppo", {"harmful": 19, "harmless": 18, "lookalike": 18}))
    assert blocked(found) == []
    more = found["more_harmless"]
    assert more.value == pytest.approx(0.45) and more.low is not None and 0.2 < more.low < 0.45
    assert found["wins"].value == 1.0 and found["helpful"].value == 0.0
    assert found["length"].value == 1.0 and found["kl"].value == 0.5


def test_a_gain_that_chance_can_explain_is_none() -> None:
    found = rules(answers("ppo", {"harmful": 11, "harmless": 18, "lookalike": 18}))
    assert found["more_harmless"].value == pytest.approx(0.05) and found["more_harmless"].low == 0
    assert found["wins"].value == 1.0 and found["wins"].low == pytest.approx(0.158, abs=1e-3)  # 2 of 2
    assert blocked(found) == ["better"]
    same = rules(answers("ppo", {"harmful": 10, "harmless": 18, "lookalike": 18}))
    assert blocked(same) == ["better"] and "every duel is a tie" in same["better"].note


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"good": {"harmful": 19, "harmless": 13, "lookalike": 18}}, "helpful"),
        ({"good": {"harmful": 19, "harmless": 18, "lookalike": 13}}, "lookalikes"),
        ({"tokens": 46}, "length"),
        ({"tokens": 19}, "length"),
        ({"kl": 50.1}, "kl"),
        ({"kl": None}, "kl"),
    ],
)
def test_each_rule_alone_refuses(change: dict[str, Any], rule: str) -> None:
    good = {"good": {"harmful": 19, "harmless": 18, "lookalike": 18}}
    assert blocked(rules(answers("ppo", **{**good, **change}))) == [rule]


def test_damage_in_the_ancestry_refuses() -> None:
    best = answers("ppo", {"harmful": 19, "harmless": 18, "lookalike": 18})
    found = rules(best, damage=("sl_cai_checkpoint abc: model.safetensors has changed",))
    assert blocked(found) == ["lineage"] and "model.safetensors has changed" in found["lineage"].note


def test_margins_are_held_against_the_end_of_the_interval() -> None:
    # 2 of 20 intents lost: -10% in the middle, down to -25% at the interval's end.
    worse = answers("ppo", {"harmful": 19, "harmless": 16, "lookalike": 18})
    found = rules(worse)
    assert found["helpful"].value == pytest.approx(-0.1) and found["helpful"].low < -0.1  # type: ignore[operator]
    assert blocked(found) == ["helpful"]
    assert blocked(rules(worse, helpful_margin=0.3)) == []


def test_few_prompts_are_no_evidence() -> None:
    """Intervals of one intent have no width."""
    best = [
        row for row in answers("ppo", {"harmful": 20, "harmless": 20, "lookalike": 20}) if row.prompt_id.endswith("-19")
    ]
    found = rules(best)
    assert blocked(found) == ["better", "helpful", "lookalikes"]
    assert "of 1 intents of this kind, 20 are needed" in found["helpful"].note
    # With as many as are asked for, one intent of eight duels is still one trial.
    one = rules([row for row in best for _ in range(4)], min_intents=1)
    assert one["wins"].low == pytest.approx(0.158, abs=0.001) and not one["wins"].passed


def test_what_cannot_be_measured_refuses_unless_it_is_accepted() -> None:
    def without_gold(rows: list[EvaluationAnswer]) -> list[EvaluationAnswer]:
        return [EvaluationAnswer(**{**vars(row), "verdict": None, "kind": "unknown"}) for row in rows]

    best = without_gold(answers("ppo", {"harmful": 19, "harmless": 18, "lookalike": 18}))
    judged = {(a.answer_id, b.answer_id): 1 for a, b in zip(best, without_gold(OLD), strict=True)}
    duels = win_rates([*best, *without_gold(OLD)], "dev", judged=judged, self_judged=True)
    found = promotion_rules(best, without_gold(OLD), duels, (), "SL-CAI", ChampionPolicySettings())
    assert [one.rule for one in found if one.blocks and not one.passed] == ["helpful", "lookalikes"]
    assert "self_judged" in next(one for one in found if one.rule == "wins").note
    assert all("champion_policy.unmeasured" in reason for reason in reasons(found))
    accepted = ChampionPolicySettings(unmeasured="accept")
    assert reasons(promotion_rules(best, without_gold(OLD), duels, (), "SL-CAI", accepted)) == []
    # Better it must be, whatever is accepted.
    never = reasons(promotion_rules(best, [], [], (), "rlaif-policy/1", accepted))
    assert len(never) == 1 and never[0].startswith("better: than rlaif-policy/1")
