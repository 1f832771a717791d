"""Saving: atomic, or an error that names the file and leaves everything as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pyngp import Testbed

# Saves over argv[2] for ever, two models in turn; says when it starts.
SAVE_FOREVER = """
import sys
from pyngp import Testbed
testbed = Testbed(device=sys.argv[3])
testbed.load_snapshot(sys.argv[1])
print("saving", flush=True)
while True:
    testbed.exposure = 1 - testbed.exposure
    testbed.save_snapshot(sys.argv[2], compress=False)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.007, 0.012, 0.018, 0.03])
def test_killed_while_saving(delay, trained_snapshot, tmp_path, device):
    """SIGKILL at any moment leaves the old file or the new one."""
    path = tmp_path / "model.ingp"
    path.write_bytes(trained_snapshot.read_bytes())
    command = [sys.executable, "-c", SAVE_FOREVER, str(trained_snapshot), str(path), device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    testbed = Testbed(device=device)
    testbed.load_snapshot(path)
    assert testbed.training_step == 300 and testbed.exposure in (0, 1)
    assert [f for f in tmp_path.iterdir() if f.suffix == ".ingp"] == [path]


def test_replaces_the_old_file(trained, tmp_path):
    path = tmp_path / "model.ingp"
    path.write_text("old")
    trained.save_snapshot(path)
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_name_without_a_folder(trained, device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained.save_snapshot("model.ingp")
    Testbed(device=device).load_snapshot("model.ingp")


def test_no_such_folder(trained, tmp_path):
    path = tmp_path / "none" / "model.ingp"
    with pytest.raises(RuntimeError, match=rf"{path}: cannot be created: No such file"):
        trained.save_snapshot(path)


def test_a_folder_of_that_name(trained, tmp_path):
    path = tmp_path / "model.ingp"
    path.mkdir()
    with pytest.raises(RuntimeError, match=rf"{path}: "):
        trained.save_snapshot(path)
    assert list(tmp_path.iterdir()) == [path] and path.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(trained, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RuntimeError, match=r"model.ingp: cannot be created: Permission denied"):
        trained.save_snapshot(tmp_path / "model.ingp")
    tmp_path.chmod(0o700)


def test_full_disk(python, trained_snapshot, device, tmp_path):
    """Writing fails half-way: the old file stays. (A limit on file sizes stands for the full disk.)"""
    path = tmp_path / "model.ingp"
    path.write_bytes(b"old")
    code = """
import resource, signal, sys
from pyngp import Testbed
testbed = Testbed(device=sys.argv[3])
testbed.load_snapshot(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    testbed.save_snapshot(sys.argv[2])
except RuntimeError as error:
    print(error)
"""
    printed = python(code, trained_snapshot, path, device).stdout
    assert printed.startswith(f"{path}: cannot be ") and "File too large" in printed
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_failed_saves_change_nothing(trained, tmp_path):
    before = trained.params().copy()
    with pytest.raises(RuntimeError):
        trained.save_snapshot(tmp_path / "none" / "model.ingp", include_optimizer_state=True)
    assert np.array_equal(trained.params(), before)
    trained.save_snapshot(tmp_path / "model.ingp")
