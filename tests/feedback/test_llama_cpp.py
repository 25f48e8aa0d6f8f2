"""A real third-party server with the packaged model: llama-cpp-python's, which gives log-probabilities.

It builds from source for some twenty minutes, so it lives in an environment of its own (the packages
llama-cpp-python[server], gguf and safetensors), whose Python LLAMA_CPP_PYTHON names.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif_assets.feedback.endpoint_judge import VERDICT_TOKENS, EndpointJudge, detect_method
from rlaif_assets.feedback.judge import Reading
from rlaif_assets.feedback.replies import chosen_option
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.local import Conversation, LocalModel, load_model
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, with_request
from rlaif_assets.pocket.world import model_folder
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings
from tests.feedback.test_transformers_serve import REQUEST, questions, wait_for

PYTHON = os.environ.get("LLAMA_CPP_PYTHON", "")
WRITER = Path(__file__).parents[1] / "gguf_pocket.py"
NAME = "pocket"

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="needs LLAMA_CPP_PYTHON: a Python with llama-cpp-python[server], gguf and safetensors"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("llama")
    file, log = folder / "pocket.gguf", folder / "serve.log"
    subprocess.run([PYTHON, WRITER, model_folder(), file], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(file), "--model_alias", NAME, "--n_ctx", "1536", "--logits_all", "true", "--n_threads", "1"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [PYTHON, "-m", "llama_cpp.server", *words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/v1/models", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def test_its_log_probabilities_are_those_of_the_same_model_here(url: str) -> None:
    settings = FeedbackModelSettings(source=url, model=NAME)
    compute = ComputeSettings(device="cpu", endpoint_timeout=300, endpoint_concurrency=1)
    method, version, reason = detect_method(Endpoint(url, NAME, compute), settings)
    assert (method, reason) == ("logprobs", "the server gives log-probabilities")
    judge = EndpointJudge(Endpoint(url, NAME, compute, version), method, settings)
    served = {number: outcome for batch in judge.read(questions()) for number, outcome in batch.items()}
    model = load_model(model_folder(), compute)
    for number, question in enumerate(questions()):
        reading, expected = served[number], logprobs_here(model, question)
        assert isinstance(reading, Reading) and reading.method == "logprobs", reading
        assert (reading.logprob_first, reading.logprob_second) == pytest.approx(expected, abs=0.01)


def logprobs_here(model: LocalModel, question: Conversation) -> list[float]:
    """Of both letters, after what the model itself replies before it names one."""
    asked = with_request(question, REQUEST)
    (reply,) = model.generate([asked], [0], VERDICT_TOKENS, 0.0)
    named = chosen_option(reply.text, JUDGE_OPTIONS, question[-1]["content"])
    assert named is not None, reply.text
    ((_, logprobs, _),) = model.option_batches([asked], reply.text[: named[1]], JUDGE_OPTIONS)
    return [float(value) for value in logprobs[0]]
