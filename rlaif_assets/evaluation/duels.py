"""Duels between policies decided by the feedback model, for prompts without a gold annotator."""

from collections.abc import Callable, Mapping, Sequence

from rlaif_assets.evaluation.rates import DUELS
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.records import EvaluationAnswer, JudgingConstitution, Pair, Prompt, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import row_id


def judge_duels(
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    answers: Sequence[EvaluationAnswer],
    settings: HarmlessnessPreferencesSettings,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[tuple[str, str], int], list[Rejection]]:
    """(answer id, answer id) -> 1 where the first wins, -1 where it loses, 0 for a tie; see `rates.win_rates`.

    `prompts` are the red-team prompts by id: answers to others do not meet. A win needs the judge's choice in both
    orders, whatever the settings say, and under every principle drawn; if choices disagree or texts are equal, it ties.
    Pairs that the judge cannot read come back as rejections.
    """
    found = {(a.policy, a.prompt_id, a.sample): a for a in answers if a.prompt_id in prompts}
    results: dict[tuple[str, str], int] = {}
    pairs: dict[str, tuple[Pair, tuple[str, str]]] = {}
    for first, second in DUELS:
        for (policy, prompt_id, sample), mine in found.items():
            other = found.get((second, prompt_id, sample))
            if policy != first or other is None:
                continue
            ids = (mine.answer_id, other.answer_id)
            if mine.text == other.text:
                results[ids] = 0
            else:
                pair = Pair(
                    pair_id=row_id("duel", *ids),
                    prompt_id=prompt_id,
                    response_a_id=mine.answer_id,
                    response_b_id=other.answer_id,
                    response_a=mine.text,
                    response_b=other.text,
                    seed_a=mine.seed,
                    seed_b=other.seed,
                    tokens_out=mine.tokens + other.tokens,
                )
                pairs[pair.pair_id] = pair, ids
    judgements, rejections = judge_pairs(
        judge,
        constitution,
        prompts,
        [pair for pair, _ in pairs.values()],
        settings.model_copy(update={"orders": "both"}),
        progress,
    )
    votes: dict[tuple[str, str], list[int]] = {}
    for judgement in judgements:
        vote = (judgement.p_a > 0.5) - (judgement.p_a < 0.5)
        votes.setdefault(pairs[judgement.pair_id][1], []).append(vote)
    for ids, found_votes in votes.items():
        results[ids] = found_votes[0] if len(set(found_votes)) == 1 else 0
    return results, rejections
