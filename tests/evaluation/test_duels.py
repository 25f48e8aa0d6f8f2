import math
from collections.abc import Iterator, Sequence

from rlaif_assets.evaluation.duels import judge_duels
from rlaif_assets.feedback.judge import Failure, Outcomes, Reading
from rlaif_assets.records import JudgingConstitution, JudgingPrinciple, Message, Prompt
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from tests.evaluation.rows import answer

CONSTITUTION = JudgingConstitution((JudgingPrinciple("p", "p", "Which is better?"),), ())


class LongerWins:
    """Chooses the longer option; where both hold 'tie' it chooses the first position."""

    fingerprint = "judge"

    def read(self, questions: Sequence[Sequence[Message]]) -> Iterator[Outcomes]:
        for i, question in enumerate(questions):
            if "too long" in question[-1]["content"]:
                yield {i: Failure("too long")}
                continue
            lines = question[-1]["content"].splitlines()
            first, second = (next(line for line in lines if line.startswith(f"({o})")) for o in "AB")
            p = 0.8 if "tie" in first + second or len(first) > len(second) else 0.2
            yield {i: Reading(math.log(p), math.log(1 - p), 1)}


def test_a_win_needs_both_orders():
    texts = {
        "a": ("longer text", "short"),
        "b": ("short", "longer text"),
        "c": ("tie one", "tie two"),
        "d": ("same", "same"),
    }
    prompts = {name: Prompt(name, ({"role": "user", "content": "q"},), "test", "unknown", "f") for name in texts}
    prompts["e"] = Prompt("e", ({"role": "user", "content": "too long"},), "test", "unknown", "f")
    answers = [
        answer(policy, name, None, kind="unknown", text=texts.get(name, ("x", "y"))[i])
        for name in (*texts, "e", "harmless question")
        for i, policy in enumerate(("ppo", "base"))
    ]
    settings = HarmlessnessPreferencesSettings(few_shot=0)
    judge = LongerWins()
    results, rejections = judge_duels(judge, CONSTITUTION, prompts, answers, settings, lambda *_: None)
    assert results == {(f"ppo {n} 0", f"base {n} 0"): won for n, won in {"a": 1, "b": -1, "c": 0, "d": 0}.items()}
    assert len(rejections) == 1
