"""The judge's passport: who judged, how it was asked, what the audits found, and when. Audits belong to `audits`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_assets.feedback.agreement import agreement_metrics
from rlaif_assets.language_models.prompts import JUDGE_TEMPLATE
from rlaif_assets.records import AuditProbe, Pair
from rlaif_assets.store.fingerprint import row_id

AGAINST_PEOPLE = {"reference": "agreement", "verdicts": "agreement_verdicts"}


def make_passport(
    judge: str,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]],
    probes: Sequence[AuditProbe],
    people: Mapping[str, Mapping[str, Pair]],
    date: str,
) -> dict[str, Any]:
    """Keys: passport_id, date (ISO), judge (fingerprint), model, template, settings, audits, reference, verdicts.

    `model` says what is known of the judge's model, `settings` how it was asked. `audits` are the rows of
    `audits.audit`; `reference` and `verdicts` hold the numbers of `agreement_metrics` for the audits agreement and
    agreement_verdicts, None without such labels of people (see `Evidence.people`). The id is a hash of all but the
    date: the same judge, found to be the same, has the same passport.
    """
    numbers = {
        name: agreement_metrics([probe for probe in probes if probe.audit == audit], people[audit])
        if audit in people
        else None
        for name, audit in AGAINST_PEOPLE.items()
    }
    content = {
        "judge": judge,
        "model": dict(model),
        "template": JUDGE_TEMPLATE,
        "settings": dict(settings),
        "audits": [dict(row) for row in verdicts],
        **numbers,
    }
    return {"passport_id": row_id("passport", content), "date": date, **content}
