"""Signs that PPO has left the ground on which its reward means something, told from the metrics of its updates.

HH (Bai et al. 2022a) section 4.3: the score that is trained rises while that of held-out preference models falls; and
Constitutional AI section 4.3: Goodharting into boilerplate. Windows are of `guard_window` updates; nothing is said
before two of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlaif_assets.settings import PpoPolicySettings

RUN_WORDS = 6  # words in a row that make a piece of boilerplate

History = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Finding:
    """`guard` fired at the end of `update`; `why` has the numbers and what to do."""

    guard: str
    update: int
    why: str


def findings(history: History, settings: PpoPolicySettings) -> list[Finding]:
    """What the updates so far show, each guard at most once."""
    window = settings.guard_window
    if len(history) < 2 * window:
        return []
    last, first = history[-window:], history[:window]
    found: list[tuple[str, str]] = []

    kl = _mean(last, "kl")
    if settings.guard_kl is not None and kl > settings.guard_kl:
        found.append(
            ("kl", f"the KL to SL-CAI is {kl:.1f} nats per answer, limit {settings.guard_kl:g} by ppo_policy.guard_kl: "
             "raise kl_coefficient, or steer it with kl_target")
        )  # fmt: skip

    if settings.guard_heldout is not None and "heldout_score" in history[-1]:
        windows = [history[at : at + window] for at in range(len(history) - window)]
        best = max(windows, key=lambda one: _mean(one, "heldout_score"))
        rise = _mean(last, "score") - _mean(best, "score")
        fall = _mean(best, "heldout_score") - _mean(last, "heldout_score")
        if rise > 0 and fall > settings.guard_heldout:
            found.append(
                ("heldout", f"the trained score rose by {rise:.2f} while the held-out one fell by {fall:.2f}, limit "
                 f"{settings.guard_heldout:g} by ppo_policy.guard_heldout: the reward is over-optimised; take fewer "
                 "updates, a larger kl_coefficient, or more labels")
            )  # fmt: skip

    gained = _mean(last, "boilerplate") - _mean(first, "boilerplate")
    if settings.guard_boilerplate is not None and gained > settings.guard_boilerplate:
        found.append(
            ("boilerplate", f"{_mean(last, 'boilerplate'):.0%} of the prompts get the same {RUN_WORDS} words, "
             f"{gained:.0%} more than at first, limit {settings.guard_boilerplate:.0%} by "
             "ppo_policy.guard_boilerplate: see `rollouts`; take a larger kl_coefficient, or labels that tell such "
             "answers apart")
        )  # fmt: skip

    highest = max(_mean(history[at : at + window], "score") for at in range(len(history) - window + 1))
    lost = highest - _mean(last, "score")
    if settings.guard_collapse is not None and lost > settings.guard_collapse:
        found.append(
            ("collapse", f"the score has fallen by {lost:.2f} from its best, limit {settings.guard_collapse:g} by "
             "ppo_policy.guard_collapse: lower learning_rate, or raise rollouts")
        )  # fmt: skip
    return [Finding(guard, len(history) - 1, why) for guard, why in found]


def standing(history: History, settings: PpoPolicySettings) -> float | None:
    """How good the policy is by the last window, for keeping the best: its held-out score where there is one, else the
    reward (score less the KL that was paid). None before a whole window."""
    if len(history) < settings.guard_window:
        return None
    last = history[-settings.guard_window :]
    return _mean(last, "heldout_score" if "heldout_score" in history[-1] else "reward")


def boilerplate(prompt_ids: Sequence[str], texts: Sequence[str]) -> float:
    """The share of the prompts that get the commonest run of RUN_WORDS words; 0 where none is that long."""
    holders: Counter[tuple[str, ...]] = Counter()
    for prompt_id in dict.fromkeys(prompt_ids):
        answers = [text.split() for one, text in zip(prompt_ids, texts, strict=True) if one == prompt_id]
        holders.update(
            {tuple(words[i : i + RUN_WORDS]) for words in answers for i in range(len(words) - RUN_WORDS + 1)}
        )
    return max(holders.values(), default=0) / max(1, len(set(prompt_ids)))


def _mean(history: History, name: str) -> float:
    return fmean(metrics[name] for metrics in history)
