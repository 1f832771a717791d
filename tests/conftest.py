"""Fixtures of all tests: devices, data, the tiny scene with a model trained on it, and child processes.

Tests with `device` run on the CPU and, where there is one, on a GPU; those with `cuda` on a GPU only. On a GPU, tests
that compare bytes ask for deterministic=True. Tests of what does not depend on the device, and all child processes,
name one: "auto" is tested in tests/python.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fields.tiny_scene import TinyScene, write_scene
from pyngp import Testbed, _core
from pyngp.cli.main import main

# A shell starts jobs in the background with SIGINT ignored, which they and their children inherit: sent by a test, it
# would do nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(os.environ.get("PYNGP_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
DEVICES = ["cpu", *(["cuda"] if _core.has_cuda else [])]
TRAINED_STEPS, TRAINED_BATCH = 300, 16384

# Trains in a few milliseconds a step.
SMALL_CONFIG: dict[str, Any] = {
    "loss": {"otype": "Huber"},
    "optimizer": {
        "otype": "Ema",
        "decay": 0.95,
        "nested": {
            "otype": "ExponentialDecay",
            "decay_start": 20000,
            "decay_interval": 10000,
            "decay_base": 0.33,
            "nested": {
                "otype": "Adam",
                "learning_rate": 1e-2,
                "beta1": 0.9,
                "beta2": 0.99,
                "epsilon": 1e-15,
                "l2_reg": 1e-6,
            },
        },
    },
    "encoding": {
        "otype": "HashGrid",
        "n_levels": 4,
        "n_features_per_level": 2,
        "log2_hashmap_size": 12,
        "base_resolution": 8,
    },
    "network": {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1},
    "rgb_network": {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1},
}


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this build has an engine for."""
    return request.param


@pytest.fixture(scope="session")
def cuda() -> str:
    """A GPU, for tests that make no sense without one."""
    if not _core.has_cuda:
        pytest.skip(_core.cuda_unavailable_reason() or "this build has no CUDA engine")
    return "cuda"


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared test data: scenes, snapshots of instant-ngp and its pictures of them."""
    if not DATA.is_dir():
        pytest.skip(f"there is no test data in {DATA} (PYNGP_TEST_DATA)")
    return DATA


@pytest.fixture(scope="session")
def small_config() -> dict[str, Any]:
    """A network configuration that trains in milliseconds a step; not to be changed."""
    return SMALL_CONFIG


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyScene:
    """The tiny scene as files and arrays."""
    return write_scene(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def snapshot_of(tiny: TinyScene, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """snapshot_of(device): a model trained there on the tiny scene for TRAINED_STEPS steps."""

    @cache
    def train(device: str) -> Path:
        testbed = Testbed(data=tiny.train, config="base_14", device=device, deterministic=True)
        testbed.fit(TRAINED_STEPS, batch_size=TRAINED_BATCH)
        path = tmp_path_factory.mktemp("trained") / "tiny.ingp"
        testbed.save_snapshot(path)
        return path

    return train


@pytest.fixture(scope="session")
def trained_snapshot(snapshot_of: Callable[[str], Path], device: str) -> Path:
    """Snapshot of the model that was trained on the device."""
    return snapshot_of(device)


@pytest.fixture
def trained(trained_snapshot: Path, device: str) -> Testbed:
    """That model in a Testbed of the test's own."""
    testbed = Testbed(device=device)
    testbed.load_snapshot(trained_snapshot)
    return testbed


@pytest.fixture(scope="session")
def gpu_snapshot(cuda: str, snapshot_of: Callable[[str], Path]) -> Path:
    """Snapshot of the model that was trained on a GPU, for tests that make no sense without one."""
    return snapshot_of(cuda)


@pytest.fixture
def gpu(gpu_snapshot: Path, cuda: str) -> Testbed:
    """That model on the GPU, in a Testbed of the test's own."""
    testbed = Testbed(device=cuda)
    testbed.load_snapshot(gpu_snapshot)
    return testbed


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def python() -> Run:
    """python("code", "argument", …, env={}, check=True): runs code in a process of its own."""

    def run(
        code: str, *arguments: object, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120)
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def cli_process() -> Run:
    """cli_process("train", …, env={}): the command line in a process of its own."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyngp", *map(str, arguments)]
        return subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120)

    return run


class Command:
    """The command line within the test's process: exit code, standard output and errors."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._capture.readouterr()
        with pytest.raises(SystemExit) as exit_of:
            main([str(a) for a in arguments])
        out, err = self._capture.readouterr()
        return int(exit_of.value.code or 0), out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """cli("info", snapshot) -> (exit code, stdout, stderr), without a process of its own."""
    monkeypatch.setenv("COLUMNS", "200")
    yield Command(capsys)
