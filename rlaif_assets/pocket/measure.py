"""What the packaged model can do, in numbers: `python -m rlaif_assets.pocket.measure [FOLDER]`.

On dev intents, which the model's critique, revision and judging text never named. Judging alone is measured on test: on
pairs that an SL-CAI checkpoint sampled for test prompts, so steps 1 and 2 are run first, by the pipeline's own code.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_assets.evaluation.labels import gold_choices, new_label_metrics
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.helpful import helpful_answers
from rlaif_assets.feedback.judge import Judge, LocalJudge
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.pairs import sample_answers
from rlaif_assets.feedback.revision import revise
from rlaif_assets.ingest.constitution import read_constitution
from rlaif_assets.language_models import prompts as wording
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.pocket import texts, world
from rlaif_assets.pocket.annotator import classify, intent_of
from rlaif_assets.pocket.documents import MORE_HARMFUL, helpful_only_answer
from rlaif_assets.pocket.intents import Intent, intents
from rlaif_assets.records import (
    CritiqueConstitution,
    JudgingConstitution,
    JudgingPrinciple,
    Pair,
    Prompt,
    Split,
)
from rlaif_assets.settings import HarmlessnessPreferencesSettings, Profile, ResponsePairsSettings, load_profile
from rlaif_assets.store.fingerprint import row_id
from rlaif_assets.training import examples

MEASURED_WITH = ("revised_responses", "sl_cai_checkpoint", "harmlessness_preferences")
FORM_KINDS = ("less_harmful", "less_evasive", "more_useful")


def verdict_shares(model: LocalModel, prompts: Sequence[Prompt], samples: int = 2) -> dict[str, dict[str, float]]:
    """kind of prompt -> verdict -> share of the model's answers at T=1."""
    counts: dict[str, Counter[str]] = {}
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    for sample in range(samples):
        for answer in sample_answers(model, prompts, "measure", 1.0, 64, 0, sample)[0]:
            prompt = by_id[answer.prompt_id]
            counts.setdefault(prompt.kind, Counter())[classify(prompt.text, answer.text)] += 1
    return {kind: {v: round(n / c.total(), 3) for v, n in sorted(c.items())} for kind, c in counts.items()}


def sl_cai(model: Path, profile: Profile, constitution: CritiqueConstitution, output: Path) -> dict[str, float]:
    """Steps 1 and 2 on the train prompts; returns the share of harmful texts by round."""
    from rlaif_assets.training.sft import train_sft

    settings = profile.sl_cai_checkpoint
    base = load_model(str(model), profile.compute)
    harmful = [prompt for prompt in world.red_team_prompts() if prompt.split == "train"]
    helpful = [prompt for prompt in world.helpful_prompts() if prompt.split == "train"]
    by_id = examples.prompts_by_id(harmful, helpful)
    revisions, _ = revise(base, constitution, harmful, profile.revised_responses, silent)
    imitated, _ = examples.finished_revisions(
        examples.revisions_to_imitate(revisions, settings.revisions), profile.revised_responses.max_new_tokens
    )
    answers, _ = helpful_answers(base, helpful, round(settings.helpful_ratio * len(imitated)), settings, silent)
    rows = examples.sft_examples(by_id, imitated, answers)
    train, heldout = examples.split_heldout(rows, examples.conversation_id, settings.heldout_share, settings.seed)
    train_sft(model, train, heldout, settings, output, profile.compute, lambda metrics, step: None)
    harm: dict[int, list[bool]] = {}
    for r in revisions:
        harm.setdefault(r.round, []).append(classify(by_id[r.prompt_id].text, r.text) == "harmful")
    return {f"round_{n}": round(sum(hits) / len(hits), 3) for n, hits in sorted(harm.items())}


def judge_on_samples(
    judge: Judge, policy: LocalModel, constitution: JudgingConstitution, profile: Profile, split: Split
) -> dict[str, Any]:
    """Accuracy and position bias on decisive pairs that the policy sampled for the split's prompts."""
    prompts = [p for p in world.red_team_prompts() + world.helpful_prompts() if p.split == split]
    sampling = ResponsePairsSettings(max_new_tokens=64, pairs_per_prompt=20)
    return new_label_metrics(policy, judge, constitution, prompts, sampling, profile.harmlessness_preferences, silent)


def written_pairs(prompts: Sequence[Prompt], write: Callable[[Intent, random.Random], tuple[str, str]]) -> list[Pair]:
    """One pair of the world's own answers per prompt."""
    rng = random.Random(7)
    rows = []
    for prompt in prompts:
        intent = intent_of(prompt.text)
        if intent:
            a, b = write(intent, rng)
            rows.append(Pair(row_id("pair", prompt.text, a, b), prompt.prompt_id, "", "", a, b, 0, 0, 0))
    return rows


def forms(first: str, second: str) -> Callable[[Intent, random.Random], tuple[str, str]]:
    return lambda intent, rng: (texts.answer(first, intent, rng), texts.answer(second, intent, rng))


def tails(intent: Intent, rng: random.Random) -> tuple[str, str]:
    return texts.comply(intent, rng, "honest"), texts.comply(intent, rng, "boasting")


def follows(
    judge: Judge,
    principle: JudgingPrinciple,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    settings: HarmlessnessPreferencesSettings,
) -> tuple[float, np.ndarray]:
    """Share of decisive pairs whose averaged label is what the principle asks for, and the labels' p_a."""
    by_id = examples.prompts_by_id(prompts)
    constitution = JudgingConstitution((principle,), read_constitution("default")[1].examples)
    judgements, _ = judge_pairs(judge, constitution, by_id, pairs, settings, silent)
    labels = make_labels(judgements)
    gold = gold_choices(constitution, by_id, pairs)
    hits = [(label.p_a < 0.5) == bool(gold(label)) for label in labels if gold(label) is not None]
    return sum(hits) / len(hits), np.array([label.p_a for label in labels])


def principle_following(
    judge: Judge, constitution: JudgingConstitution, settings: HarmlessnessPreferencesSettings
) -> dict[str, float]:
    """On dev pairs about which principles disagree: the share of labels that follow the principle; its inversion.

    Of the wordings of one kind of principle the worst counts.
    """
    harmful = [p for p in world.red_team_prompts() if p.split == "dev"]
    helpful = [p for p in world.helpful_prompts() if p.split == "dev"]
    conflicts = (
        ("harmful prompt, comply or evade", harmful, forms("comply", "evade"), FORM_KINDS),
        ("harmful prompt, comply or redirect", harmful, forms("comply", "redirect"), ("less_harmful", "more_useful")),
        ("harmless prompt, comply or refuse", helpful, forms("comply", "redirect"), ("less_evasive", "more_useful")),
        ("harmless prompt, modest or boasting", helpful, tails, ("more_honest",)),
    )
    shares: dict[str, float] = {}
    for conflict, prompts, write, kinds in conflicts:
        pairs = written_pairs(prompts, write)
        for kind in kinds:
            wordings = [p for p in constitution.principles if p.kind == kind]
            found = [follows(judge, principle, prompts, pairs, settings)[0] for principle in wordings]
            shares[f"{kind}: {conflict}"] = round(min(found), 3)
    pairs = written_pairs(harmful, forms("comply", "redirect"))
    less = follows(judge, constitution.principles[0], harmful, pairs, settings)[1] > 0.5
    more = JudgingPrinciple("more", "more", MORE_HARMFUL[0], "more_harmful")
    inverted = (follows(judge, more, harmful, pairs, settings)[1] > 0.5) != less
    shares["inverted by 'more harmful'"] = round(float(np.mean(inverted)), 3)
    return shares


def layouts(
    judge: Judge, constitution: JudgingConstitution, settings: HarmlessnessPreferencesSettings
) -> dict[str, float]:
    """Share of dev labels that follow a principle of harm, by the principle's place and the number of examples."""
    harmful = [p for p in world.red_team_prompts() if p.split == "dev"]
    pairs = written_pairs(harmful, forms("comply", "redirect"))
    shares: dict[str, float] = {}
    for place, examples_shown in product(("before", "after"), (0, 1, 2)):
        shown = settings.model_copy(update={"principle_position": place, "few_shot": examples_shown})
        share = follows(judge, constitution.principles[0], harmful, pairs, shown)[0]
        shares[f"principle {place}, {examples_shown} examples"] = round(share, 3)
    return shares


def revision_under_critique(model: LocalModel, constitution: CritiqueConstitution) -> dict[str, float]:
    """Share of harmless revisions of harmful dev responses, under their own critique and under another response's."""
    rng = random.Random(3)
    principle = constitution.principles[0]
    rows = []
    for prompt in world.red_team_prompts():
        intent = intent_of(prompt.text)
        if prompt.split == "dev" and intent:
            rows.append((prompt, texts.comply(intent, rng)))
    asked = [wording.critique_messages(p.messages, text, principle, constitution.examples[:1]) for p, text in rows]
    critiques = [g.text for g in model.generate(asked, list(range(len(rows))), 64, 1.0)]
    others = []
    for _ in rows:
        other = rng.choice([intent for intent in intents() if intent.split == "train"])
        ask: tuple = ({"role": "user", "content": rng.choice(texts.ASKS).format(intent=other.text)},)
        others.append(
            wording.critique_messages(ask, helpful_only_answer(other, rng), principle, constitution.examples[:1])
        )
    foreign = [g.text for g in model.generate(others, list(range(len(rows))), 64, 1.0)]
    shares = {}
    for name, used in (("own", critiques), ("another's", foreign)):
        requests = [
            wording.revision_messages(p.messages, text, principle, critique, constitution.examples[:1])
            for (p, text), critique in zip(rows, used, strict=True)
        ]
        made = model.generate(requests, list(range(len(rows))), 64, 1.0)
        good = [classify(p.text, g.text) in ("engaged", "evasive") for (p, _), g in zip(rows, made, strict=True)]
        shares[name] = round(sum(good) / len(good), 3)
    return shares


def ratings(model: LocalModel, constitution: JudgingConstitution) -> dict[str, float]:
    """Mean rating, 1 to 9 (expectation over the scale), of the world's answers to harmful dev prompts, by verdict."""
    rng = random.Random(4)
    questions, verdicts = [], []
    for prompt in world.red_team_prompts():
        intent = intent_of(prompt.text)
        if prompt.split != "dev" or not intent:
            continue
        for form in ("comply", "evade", "redirect"):
            text = texts.answer(form, intent, rng)
            questions.append(wording.rating_messages(prompt.messages, text, constitution.principles[0].text))
            verdicts.append(classify(prompt.text, text))
    logprobs, _ = model.option_logprobs(questions, wording.RATING_PREFILL, wording.RATING_SCALE)
    chances = np.exp(logprobs) / np.exp(logprobs).sum(axis=1, keepdims=True)
    scores = chances @ np.arange(1, 10)
    return {
        v: round(float(np.mean([s for s, w in zip(scores, verdicts, strict=True) if w == v])), 2) for v in set(verdicts)
    }


def measure(folder: Path) -> dict[str, object]:
    profile = load_profile("pocket")
    critique, judging = read_constitution("default")
    model = load_model(str(folder), profile.compute)
    dev = [p for p in world.red_team_prompts() + world.helpful_prompts() if p.split == "dev"]
    found: dict[str, object] = {
        "settings": {stage: getattr(profile, stage).model_dump(mode="json") for stage in MEASURED_WITH},
        "base": verdict_shares(model, dev),
        "rating": ratings(model, judging),
    }
    judge = LocalJudge(model)
    found["principles"] = principle_following(judge, judging, profile.harmlessness_preferences)
    found["layouts"] = layouts(judge, judging, profile.harmlessness_preferences)
    found["revision"] = revision_under_critique(model, critique)
    with tempfile.TemporaryDirectory() as work:
        found["harmful_by_round"] = sl_cai(folder, profile, critique, Path(work) / "sl_cai")
        policy = load_model(str(Path(work) / "sl_cai"), profile.compute)
        found["sl_cai"] = verdict_shares(policy, dev)
        found["judge"] = judge_on_samples(judge, policy, judging, profile, "test")
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else world.model_folder()
    print(json.dumps(measure(place), indent=1))
