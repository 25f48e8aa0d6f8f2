from pathlib import Path

import pytest

from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.test_ppo import tiny_reward_model

    return tiny_reward_model("llama", tmp_path_factory.mktemp("reward"))
