"""Step 1: a response, then critique-revision rounds in one chain. Wording belongs to `language_models.prompts`.

A prompt either ends with `rounds` + 1 rows or is one rejection. The rows of a chain that stopped are not kept, for the
last of them would be taken for a final revision. So prompts = finished chains + rejections, always.
"""

from collections.abc import Mapping, Sequence

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import Progress, Request, generate_texts
from rlaif_assets.language_models.local import Generation, LocalModel
from rlaif_assets.language_models.prompts import critique_messages, response_messages, revision_messages
from rlaif_assets.records import CritiqueConstitution, CritiquePrinciple, Message, Prompt, Rejection, Revision
from rlaif_assets.settings import RevisedResponsesSettings
from rlaif_assets.store.fingerprint import draw_seed, row_id


def revise(
    model: LocalModel,
    constitution: CritiqueConstitution,
    prompts: Sequence[Prompt],
    settings: RevisedResponsesSettings,
    progress: Progress,
) -> tuple[list[Revision], list[Rejection]]:
    """The chains of all prompts and the prompts that have none (Constitutional AI 3.1, App. C.1).

    In every round (prompt, latest text) is treated as an ordinary prompt and response: the model critiques it under one
    principle, drawn with replacement, then rewrites it under the same principle; or rewrites it at once, where
    `settings.critique` is off (3.5). The first `few_shot` examples of the constitution (or as many as it has) precede
    both. Rows are sorted by prompt, in the order given, then by round.
    A prompt is rejected when a request does not fit the context or a response, critique or revision is empty; the
    rejection's `text` is the last text of its chain. Raises ValueError for a repeated prompt id.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    if len(by_id) != len(prompts):
        raise ValueError(f"{len(prompts) - len(by_id)} prompts repeat the id of another: remove the duplicates")
    examples = constitution.examples[: settings.few_shot]
    chains: dict[str, list[Revision]] = {prompt_id: [] for prompt_id in by_id}
    rejections: list[Rejection] = []

    def ask(phase: str, round: int, messages: Mapping[str, Sequence[Message]]) -> dict[str, Generation]:
        """One text per chain; a chain that gets none ends here."""
        requests = [Request(i, text, draw_seed(i, settings.seed, phase, round)) for i, text in messages.items()]
        title = f"{phase} {round}/{settings.rounds}" if round else phase
        outcomes = generate_texts(model, requests, settings.max_new_tokens, settings.temperature, title, progress)
        for i, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Rejection):
                chain = chains.pop(i)
                rejections.append(Rejection(i, outcome.reason, chain[-1].text if chain else by_id[i].text))
        return {i: text for i, text in zip(messages, outcomes, strict=True) if not isinstance(text, Rejection)}

    for i, response in ask("response", 0, {i: response_messages(by_id[i]) for i in chains}).items():
        chains[i].append(_response_row(i, response, settings))
    for round in range(1, settings.rounds + 1):
        principles = {
            i: draw_principle(constitution.principles, i, settings.seed, "critique-principle", round) for i in chains
        }
        critiques: dict[str, Generation] = {}
        if settings.critique:
            questions = {
                i: critique_messages(by_id[i].messages, chain[-1].text, principles[i], examples)
                for i, chain in chains.items()
            }
            critiques = ask("critique", round, questions)
        told = {i: critiques[i].text if settings.critique else None for i in chains}
        revisions = ask(
            "revision",
            round,
            {
                i: revision_messages(by_id[i].messages, chain[-1].text, principles[i], told[i], examples)
                for i, chain in chains.items()
            },
        )
        for i, revision in revisions.items():
            chains[i].append(_revision_row(chains[i][-1], principles[i], critiques.get(i), revision, settings))
    return [row for chain in chains.values() for row in chain], rejections


def _response_row(prompt_id: str, response: Generation, settings: RevisedResponsesSettings) -> Revision:
    text = response.text
    return Revision(
        revision_id=row_id("revision", prompt_id, 0, text),
        prompt_id=prompt_id,
        round=0,
        text=text,
        parent_id=None,
        principle_id=None,
        critique=None,
        seed=draw_seed(prompt_id, settings.seed, "response", 0),
        tokens_in=response.tokens_in,
        tokens_out=len(response.token_ids),
        finished=response.finished,
    )


def _revision_row(
    parent: Revision,
    principle: CritiquePrinciple,
    critique: Generation | None,
    revision: Generation,
    settings: RevisedResponsesSettings,
) -> Revision:
    prompt_id, round, text = parent.prompt_id, parent.round + 1, revision.text
    critique_text = critique.text if critique else None
    asked = [critique, revision] if critique else [revision]
    return Revision(
        revision_id=row_id(
            "revision", prompt_id, round, parent.revision_id, principle.principle_id, critique_text, text
        ),
        prompt_id=prompt_id,
        round=round,
        text=text,
        parent_id=parent.revision_id,
        principle_id=principle.principle_id,
        critique=critique_text,
        seed=draw_seed(prompt_id, settings.seed, "revision", round),
        tokens_in=sum(one.tokens_in for one in asked),
        tokens_out=sum(len(one.token_ids) for one in asked),
        finished=revision.finished,
        critique_seed=draw_seed(prompt_id, settings.seed, "critique", round) if critique else None,
    )
