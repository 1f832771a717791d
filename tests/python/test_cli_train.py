"""pyngp train: options, reports, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from pyngp import ColorSpace, OccupancySchedule, Testbed
from reference.snapshot import decompress
from report_checks import check_report

BATCH = ["--batch-size", 2048]


@pytest.fixture
def config(small_config, tmp_path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_config))
    return path


@pytest.fixture
def train(cli, config):
    def run(scene: Path, *arguments: object) -> str:
        code, out, err = cli("train", scene, "--config", config, *BATCH, *arguments)
        assert code == 0, err
        return out

    return run


def test_report_and_snapshot(train, tiny, tmp_path, config):
    save, report_path = tmp_path / "s.ingp", tmp_path / "r.json"
    out = train(tiny.train, "--steps", 12, "--test", tiny.test, "--save", save, "--report", report_path, "--seed", 5)
    report = check_report(report_path, steps=12, seed=5, config=str(config), n_test_images=4)
    assert report["ms_per_step"] == pytest.approx(1000 * report["train_seconds"] / 12)
    assert report["samples_per_step"] > 0 and report["rays_per_step"] > 0
    assert 0 < report["startup_seconds"] < 3600
    assert [p["steps"] for p in report["curve"]] == [12]
    assert report["curve"][0]["psnr"] == report["psnr"]
    testbed = Testbed()
    testbed.load_snapshot(save)
    assert testbed.training_step == 12 and testbed.loss == pytest.approx(report["loss"])
    assert f"saved {save} at step 12" in out and f"PSNR {report['psnr']:.2f}" in out and "report: " in out


def test_evaluations_on_the_way(train, tiny, tmp_path):
    report_path = tmp_path / "r.json"
    # Far enough apart for steps on a busy machine.
    train(tiny.train, "--seconds", 2.5, "--eval-at", "1.5,0.5", "--test", tiny.test, "--report", report_path)
    report = check_report(report_path)
    seconds = [p["seconds"] for p in report["curve"]]
    assert len(seconds) == 3 and seconds == sorted(seconds)
    assert seconds[0] >= 0.5 and seconds[1] >= 1.5 and seconds[2] >= 2.5
    assert seconds[2] == pytest.approx(report["train_seconds"]) and seconds[2] < 10
    assert report["curve"][-1]["steps"] == report["steps"]


def test_steps_and_seconds_whichever_is_first(train, tiny, tmp_path):
    train(tiny.train, "--steps", 3, "--seconds", 60, "--report", tmp_path / "r.json")
    assert check_report(tmp_path / "r.json")["steps"] == 3
    train(tiny.train, "--steps", 0, "--report", tmp_path / "r.json")
    assert check_report(tmp_path / "r.json")["ms_per_step"] is None


def test_test_views_are_never_trained_on(train, tiny, tmp_path):
    """SCENE is the folder that holds both files."""
    save = tmp_path / "s.ingp"
    train(tiny.folder, "--steps", 1, "--test", tiny.test, "--save", save)
    document = msgpack.unpackb(decompress(save.read_bytes()))
    paths = document["snapshot"]["nerf"]["dataset"]["paths"]
    assert sorted(paths) == sorted(f"train/r_{i}.png" for i in range(20))
    train(tiny.folder, "--steps", 1, "--save", save)
    assert len(msgpack.unpackb(decompress(save.read_bytes()))["snapshot"]["nerf"]["dataset"]["paths"]) == 24


def test_options_reach_training(train, tiny, tmp_path):
    save = tmp_path / "s.ingp"
    train(tiny.train, "--steps", 1, "--save", save, "--nerf-compatibility", "--occupancy", "specification", "--compact")
    testbed = Testbed()
    testbed.load_snapshot(save)
    assert testbed.color_space == ColorSpace.SRGB and not testbed.nerf.training.random_bg_color
    assert testbed.nerf.cone_angle_constant == 0
    assert testbed.nerf.training.occupancy_schedule == OccupancySchedule.Specification
    assert "optimizer" not in msgpack.unpackb(decompress(save.read_bytes()))["snapshot"]


def test_resuming(train, tiny, tmp_path):
    """Goes on from the snapshot's step, with its settings."""
    first, second, report_path = tmp_path / "a.ingp", tmp_path / "b.ingp", tmp_path / "r.json"
    train(tiny.train, "--steps", 4, "--save", first, "--nerf-compatibility")
    train(tiny.train, "--steps", 3, "--resume", first, "--save", second, "--report", report_path)
    testbed = Testbed()
    testbed.load_snapshot(second)
    assert testbed.training_step == 7 and testbed.color_space == ColorSpace.SRGB
    report = check_report(report_path, steps=3, training_step=7, color_space="SRGB")
    assert report["ms_per_step"] == pytest.approx(1000 * report["train_seconds"] / 3)


def start(arguments: list[Any], **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyngp", *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | env
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_ctrl_c_saves_the_snapshot_so_far(tiny, config, tmp_path):
    """Exit code 130, one word, and a snapshot that training can go on from."""
    save = tmp_path / "s.ingp"
    options = ["--config", config, *BATCH, "--seconds", 100, "--eval-at", 0.1, "--test", tiny.test, "--save", save]
    with start(["train", tiny.train, *options]) as process:
        assert process.stdout is not None and "PSNR" in process.stdout.readline()  # training goes on after this
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"saved {save} at step " in out and "Traceback" not in err
    assert err.strip().splitlines()[-1] == "interrupted"
    testbed = Testbed(data=tiny.train)
    testbed.load_snapshot(save)
    assert testbed.training_step == int(out.split("at step ")[1].split()[0]) > 0
    testbed.fit(1, batch_size=512)
    assert np.isfinite(testbed.loss)


def test_ctrl_c_without_save(tiny, config, tmp_path):
    options = ["--config", config, *BATCH, "--seconds", 100, "--eval-at", 0.1, "--test", tiny.test]
    with start(["train", tiny.train, *options]) as process:
        assert process.stdout is not None and "PSNR" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    assert list(tmp_path.iterdir()) == [config]


def test_failed_training_does_not_touch_the_old_snapshot(cli, tiny, config, tmp_path):
    save = tmp_path / "s.ingp"
    save.write_bytes(b"old")
    code, _, _ = cli("train", tiny.train, "--config", config, "--steps", 1, "--batch-size", 100, "--save", save)
    assert code == 1 and save.read_bytes() == b"old"


def test_depth_maps_get_their_weight(train, tiny, tmp_path):
    """--depth-lambda: it is in the snapshot, and goes on when training is resumed."""
    save, again = tmp_path / "s.ingp", tmp_path / "t.ingp"
    train(tiny.train, "--steps", 1, "--save", save, "--depth-lambda", 0.25)
    train(tiny.train, "--steps", 1, "--save", again, "--resume", save)
    testbed = Testbed(device="cpu")
    testbed.load_snapshot(again)
    assert testbed.nerf.training.depth_supervision_lambda == 0.25
