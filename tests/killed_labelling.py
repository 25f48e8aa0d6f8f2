"""A process of test_killed_labelling: labels a home's pairs with a fake judge that writes down what it is asked."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlaif_assets.assets import mlflow_run, step3_preferences
from rlaif_assets.feedback import probes
from rlaif_assets.feedback.judge import Outcomes, Reading
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.store.fingerprint import row_id
from tests.feedback.fakes import hashed_logprobs
from tests.homes import Home, failure
from tests.preference_homes import LABELS, NO_REFERENCE, sound_probes

BATCH = 6


class WritingJudge:
    """Answers by a hash. Every batch is a line in `log` before it is answered; after `batches` it waits for its end."""

    fingerprint = "writing-judge"

    def __init__(self, log: Path, batches: int | None) -> None:
        self.log, self.batches = log, batches

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        for number, start in enumerate(range(0, len(questions), BATCH)):
            if number == self.batches:
                signal.pause()
            rows = questions[start : start + BATCH]
            line = json.dumps([row_id("asked", list(row)) for row in rows]) + "\n"
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, line.encode())
            os.close(descriptor)
            yield {start + i: Reading(*hashed_logprobs(row), 10) for i, row in enumerate(rows)}


def label_home(folder: Path, model: Path, log: Path, batches: int | None) -> None:
    step3_preferences.judge_of = lambda stage: WritingJudge(log, batches)
    mlflow_run.MlflowRun.start = lambda self: None
    probes.probe_judge = sound_probes
    result = Home(folder, model, f"constitution.path={folder / 'constitution.yaml'}", NO_REFERENCE).run([LABELS])
    if not result.success:
        raise SystemExit(failure(result))
