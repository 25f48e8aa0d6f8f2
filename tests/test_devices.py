"""Who uses which GPU, told without any: locks in the home, slots of the pool, tags for step launchers."""

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from rlaif_assets import devices, resources
from rlaif_assets.definitions import defs
from rlaif_assets.instance import prepare_home, set_gpu_slots
from rlaif_assets.settings import SettingsError
from tests.tiny_models import tiny_model

TAKES = """
import json, os, sys
from pathlib import Path
from rlaif_assets.devices import held_gpu, take_gpu
print(json.dumps([take_gpu(Path(sys.argv[1])), os.environ["CUDA_VISIBLE_DEVICES"], held_gpu()]), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def none_is_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(devices.VISIBLE, "")
    yield
    devices.release_gpu()


def process(home: Path) -> tuple["subprocess.Popen[str]", Any]:
    words = [sys.executable, "-c", TAKES, str(home)]
    environment = {**os.environ, devices.VISIBLE: "4, GPU-7"}
    started = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    return started, json.loads(started.stdout.readline())


@pytest.mark.parametrize(
    ("value", "found"), [("", []), ("-1", []), ("0", ["0"]), ("2, 3", ["2", "3"]), ("GPU-7,MIG-1", ["GPU-7", "MIG-1"])]
)
def test_what_cuda_may_see_is_what_there_is(monkeypatch: pytest.MonkeyPatch, value: str, found: list[str]) -> None:
    monkeypatch.setenv(devices.VISIBLE, value)
    assert devices.visible_gpus() == found


def test_device_files_are_counted_where_nothing_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.delenv(devices.VISIBLE)
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    assert devices.visible_gpus() == ["0", "2", "10"]


def test_each_process_takes_the_first_gpu_that_no_other_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.VISIBLE, "4,GPU-7")
    first, told = process(tmp_path)
    second, other = process(tmp_path)
    try:
        assert (told, other) == ([0, "4", 0], [1, "GPU-7", 1])
        with pytest.raises(BlockingIOError, match="all 2 GPUs are held by other processes"):
            devices.take_gpu(tmp_path)
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
        monkeypatch.setattr(resources, "GPU_PATIENCE", 0.1)
        with pytest.raises(SettingsError, match=r"compute\.device=auto: all 2 GPUs are held.*wait, or name one"):
            resources.Compute(device="auto").settings()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert resources.Compute(device="auto").settings().device == "auto"  # the one that it sees
        assert (devices.held_gpu(), os.environ[devices.VISIBLE]) == (0, "4")
        assert devices.take_gpu(tmp_path) == 0  # once
        assert sorted(path.name for path in tmp_path.glob("gpu-*")) == ["gpu-0.lock", "gpu-1.lock"]
    finally:
        for started in (first, second):
            started.kill()
            started.communicate()


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": "cuda:1"}, {"device": "auto", "processes": 2}])
def test_a_device_that_is_named_and_several_processes_take_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert resources.Compute(**options).settings().device == options["device"]
    assert devices.held_gpu() is None and os.environ[devices.VISIBLE] == "0,1"


@pytest.mark.parametrize(("visible", "slots"), [("", 1), ("0", 1), ("0,1,2", 3)])
def test_the_pool_has_as_many_slots_as_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, slots: int
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    prepare_home(tmp_path / "home")
    monkeypatch.setenv(devices.VISIBLE, visible)
    with dg.DagsterInstance.get() as instance:
        for _ in range(2):
            set_gpu_slots(instance)
            assert instance.event_log_storage.get_concurrency_info(devices.POOL).slot_count == slots


def test_assets_of_the_pool_ask_launchers_for_gpus() -> None:
    pooled = [asset.op for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition) and asset.op.pool]
    assert len(pooled) >= 9 and {op.pool for op in pooled} == {devices.POOL}
    limits = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}
    for op in pooled:
        assert json.loads(op.tags["dagster-k8s/config"]) == limits, op.name
        assert json.loads(op.tags["dagster-ray/config"]) == {"num_gpus": 1}
    assert devices.gpu_tags("cpu", 1) == {} and devices.gpu_tags("auto", 4)["dagster-ray/config"] == {"num_gpus": 4}


def test_models_make_room_for_one_that_does_not_fit_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif_assets.language_models import local

    compute, plain = resources.Compute(device="cpu"), local.load_model
    held = weakref.ref(compute.load(tiny_model("llama", tmp_path / "one")))
    assert held() is not None  # it stays loaded
    calls: list[bool] = []

    def load(*words: Any) -> Any:
        calls.append(held() is None)
        if held() is not None:
            raise torch.OutOfMemoryError("out of memory")
        return plain(*words)

    monkeypatch.setattr(local, "load_model", load)
    compute.load(tiny_model("llama", tmp_path / "two", seed=1))
    assert calls == [False, True]  # really freed
    monkeypatch.setattr(local, "load_model", lambda *words: (_ for _ in ()).throw(torch.OutOfMemoryError("too large")))
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        resources.Compute(device="cpu").load(tmp_path / "one")
