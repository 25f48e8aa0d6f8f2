"""What all tests share: one torch thread, and one home in which every asset was made once."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.chat_server import ChatServer, Plan, chat_server
from tests.homes import Home, failure, metadata

os.environ["OMP_NUM_THREADS"] = "1"  # torch is imported later; tiny models are slower with more threads
for name in ("COLUMNS", "LINES"):  # a worker of pytest-xdist sets them, and a console would keep that size
    os.environ.pop(name, None)
settings.register_profile("rlaif", deadline=None)  # a busy machine is no failure
settings.load_profile("rlaif")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama whose answers end, the base and feedback model of `home`. Not to be changed."""
    from tests.tiny_models import tiny_model

    return tiny_model("llama", tmp_path_factory.mktemp("model") / "tiny", stops=60)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Home:
    """Every asset made once at a very small size; `home.first` holds the snapshot ids.

    A test that adds snapshots makes the first ones current again; one that counts what is there copies
    `home.pristine`.
    """
    made = Home(tmp_path_factory.mktemp("homes") / "first", model)
    first = made.run()
    assert first.success, failure(first)
    assert not any(found["reused"] for found in metadata(first).values())
    made.first = made.ids()
    made.pristine = Path(shutil.copytree(made.folder, made.folder.with_name("pristine")))
    return made


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], ChatServer]]:
    """Starts chat servers that end with the test; the client does not wait long before it tries again."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with ExitStack() as stack:
        yield lambda plan: stack.enter_context(chat_server(plan))
