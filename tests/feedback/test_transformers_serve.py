"""A real third-party server with the packaged model: `transformers serve`, which gives no log-probabilities."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from rlaif_assets.feedback.endpoint_judge import VERDICT_TOKENS, EndpointJudge, detect_method
from rlaif_assets.feedback.judge import JudgeStoppedError, Reading
from rlaif_assets.feedback.replies import chosen_option
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, judge_messages, with_request
from rlaif_assets.pocket.world import model_folder
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="transformers serve needs fastapi, uvicorn and openai: one of them is missing"
)
SERVE = "from transformers.cli.transformers import main; main()"
PRINCIPLE = "Choose the response that is less harmful."
VOTES = 24
PAIRS = (
    ("Sure, here is how to do it. First, pick a quiet hour.", "I won't help with that, since it would hurt them."),
    ("I can't say.", "It is not hard. First, find the right tools for the job."),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(base URL, the model's name): a copy of the packaged model that samples, since the server asks its config."""
    folder = shutil.copytree(model_folder(), tmp_path_factory.mktemp("served") / "pocket")
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": True, "top_k": 0}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            server.terminate()
            server.wait(30)


REQUEST = FeedbackModelSettings(source="pocket").verdict_request


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            try:
                server.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"{url} does not answer:\n{log.read_text()}")


def questions() -> list[list[Message]]:
    prompt: list[Message] = [{"role": "user", "content": "How can I shoot the farm horses?"}]
    orders = [order for first, second in PAIRS for order in ((first, second), (second, first))]
    return [judge_messages(prompt, first, second, PRINCIPLE, (), "before") for first, second in orders]


def sampled_shares(question: list[Message], model: LocalModel, count: int = 200) -> tuple[float, float]:
    """The local model's own replies: the share that names a letter, and the share that names (A)."""
    asked = with_request(question, REQUEST)
    replies = model.generate([asked] * count, range(count), VERDICT_TOKENS, 1.0)
    named = [chosen_option(reply.text, JUDGE_OPTIONS, question[-1]["content"]) for reply in replies]
    letters = [found[0] for found in named if found]
    return len(letters) / count, letters.count("A") / count


def test_votes_of_a_served_model_are_what_the_same_model_replies_here(served: tuple[str, str]) -> None:
    url, name = served
    settings = FeedbackModelSettings(source=url, model=name, votes=VOTES)
    # One at a time: the server's seeds are global, so questions asked at once would share them.
    compute = ComputeSettings(device="cpu", endpoint_timeout=300, endpoint_concurrency=1)
    method, version, reason = detect_method(Endpoint(url, name, compute), settings)
    assert (method, version, reason) == ("votes", f"{name}@main", "the server gives no log-probabilities")
    judge = EndpointJudge(Endpoint(url, name, compute, version), method, settings)
    found = {number: outcome for batch in judge.read(questions()) for number, outcome in batch.items()}
    model = load_model(model_folder(), compute)
    four_sigma = 4 * math.sqrt(0.25 / VOTES + 0.25 / 200)
    for number, question in enumerate(questions()):
        reading, (valid, for_a) = found[number], sampled_shares(question, model)
        assert isinstance(reading, Reading) and reading.method == "votes", reading
        share = math.exp(reading.logprob_first)  # smoothed by half a vote
        print(f"question {number}: valid {reading.mass:.2f} (here {valid:.2f}), (A) {share:.2f} (here {for_a:.2f})")
        assert abs(reading.mass - valid) <= four_sigma and abs(share - for_a) <= four_sigma + 0.5 / VOTES
        assert reading.tokens_in >= VOTES and reading.tokens_out >= VOTES
    assert len({reading.mass for reading in found.values() if isinstance(reading, Reading)}) > 1
    assert judge.endpoint.calls == len(found) * VOTES


def test_a_name_that_it_does_not_serve(served: tuple[str, str]) -> None:
    compute = ComputeSettings(endpoint_failures=1, endpoint_retries=0, endpoint_concurrency=1)
    judge = EndpointJudge(Endpoint(served[0], "other", compute), "votes", FeedbackModelSettings(votes=1))
    with pytest.raises(JudgeStoppedError, match=r"1 failures in a row .*HTTP 400: .*pinned"):
        list(judge.read(questions()))
