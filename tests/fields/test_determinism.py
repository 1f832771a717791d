"""The same seed gives the same bytes whatever the threads and the process; training resumes exactly.

On a GPU with deterministic=True; there, PYNGP_NUM_THREADS bounds only what the host does.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TRAINED_STEPS
from pyngp import ColorSpace, OccupancySchedule, Testbed
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate

BATCH = 4096

# device scene config out steps [resume]: trains, from a snapshot if given
TRAIN = """
import json, sys
from pyngp import Testbed
device, scene, config, out, steps, *resume = sys.argv[1:]
testbed = Testbed(data=scene, config=json.load(open(config)), device=device, deterministic=True)
if resume:
    testbed.load_snapshot(resume[0])
testbed.fit(int(steps), batch_size=4096)
testbed.save_snapshot(out, include_optimizer_state=True, compress=False)
"""


@pytest.fixture(scope="module")
def wide_scene(tiny) -> Path:
    """The tiny scene in a box of two cascades: cone stepping and coarser grids take part."""
    document = json.loads(tiny.train.read_text()) | {"aabb_scale": 2}
    path = tiny.folder / "wide.json"
    path.write_text(json.dumps(document))
    yield path
    path.unlink()


@pytest.fixture
def config_file(small_config, tmp_path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small_config))
    return path


@pytest.fixture
def sixty_steps(tiny, device, config_file, tmp_path, python) -> Path:
    out = tmp_path / "sixty.ingp"
    python(TRAIN, device, tiny.train, config_file, out, 60, env={"PYNGP_NUM_THREADS": "1"})
    return out


def test_bytes_do_not_depend_on_threads_or_process(tiny, device, config_file, sixty_steps, tmp_path, python):
    expected = sixty_steps.read_bytes()
    for name, threads in (("two", "2"), ("again", "2"), ("three", "3")):
        out = tmp_path / f"{name}.ingp"
        python(TRAIN, device, tiny.train, config_file, out, 60, env={"PYNGP_NUM_THREADS": threads})
        assert out.read_bytes() == expected, name


def test_bytes_with_cascades(wide_scene, device, config_file, tmp_path, python):
    snapshots = []
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.ingp"
        python(TRAIN, device, wide_scene, config_file, out, 20, env={"PYNGP_NUM_THREADS": threads})
        snapshots.append(out.read_bytes())
    assert snapshots[0] == snapshots[1]


def test_resuming_is_exact(tiny, device, config_file, sixty_steps, tmp_path, python):
    half, whole = tmp_path / "half.ingp", tmp_path / "whole.ingp"
    python(TRAIN, device, tiny.train, config_file, half, 30)
    python(TRAIN, device, tiny.train, config_file, whole, 30, half)
    assert whole.read_bytes() == sixty_steps.read_bytes()


@pytest.mark.parametrize(
    "schedule", [OccupancySchedule.Budgeted, OccupancySchedule.Specification], ids=lambda s: s.name
)
def test_resuming_with_other_settings(schedule, wide_scene, tiny, small_config, device, tmp_path):
    """Cascades, another batch size after the break, another number of images: all of it is in the snapshot."""

    steps = 5 if schedule == OccupancySchedule.Budgeted else 2  # the other one's take a second each

    def prepared() -> Testbed:
        testbed = Testbed(data=wide_scene, config=small_config, device=device, seed=99, deterministic=True)
        testbed.nerf.training.occupancy_schedule = schedule
        testbed.nerf.training.n_images_for_training = 15
        testbed.color_space = ColorSpace.SRGB
        testbed.fit(steps, batch_size=1024)
        return testbed

    whole, half = prepared(), prepared()
    half.save_snapshot(tmp_path / "half.ingp", include_optimizer_state=True)
    resumed = Testbed(data=wide_scene, device=device, deterministic=True)
    resumed.load_snapshot(tmp_path / "half.ingp")
    for name, testbed in (("whole", whole), ("resumed", resumed)):
        testbed.fit(steps, batch_size=1536)
        testbed.save_snapshot(tmp_path / f"{name}.ingp", include_optimizer_state=True)
    assert (tmp_path / "whole.ingp").read_bytes() == (tmp_path / "resumed.ingp").read_bytes()


def test_resuming_on_the_command_line_is_exact(tiny, device, config_file, tmp_path, cli):
    def train(steps: int, save: str, *more: object) -> Path:
        path = tmp_path / save
        options = ["--config", config_file, "--steps", steps, "--batch-size", BATCH, "--save", path]
        options += ["--device", device, "--deterministic"]
        code, _, err = cli("train", tiny.train, *options, "--quiet", *more)
        assert code == 0, err
        return path

    whole = train(24, "whole.ingp")
    half = train(12, "half.ingp")
    assert half.read_bytes() != whole.read_bytes()
    resumed = train(12, "resumed.ingp", "--resume", half)
    assert resumed.read_bytes() == whole.read_bytes()


def test_saving_does_not_disturb_training(tiny, small_config, device, tmp_path):
    parameters = []
    for saves in (False, True):
        testbed = Testbed(data=tiny.train, config=small_config, device=device, deterministic=True)
        for _ in range(3):
            testbed.fit(2, batch_size=1024)
            if saves:
                testbed.save_snapshot(tmp_path / "now.ingp", include_optimizer_state=True)
                testbed.render(8, 8)
                testbed.query(np.zeros((3, 3)))
                testbed.density_grid()
        parameters.append(testbed.params())
    assert np.array_equal(*parameters)


def test_training_goes_on_from_a_compact_snapshot(trained_snapshot, tiny, device):
    """Without optimizer state it is not exact, but nothing falls back to the start.

    Adam's first steps change every parameter by the learning rate: that costs some 4 dB, all but 1 of which are back
    after 40 steps. A new model is 15 dB below then.
    """
    frames = read_scene(tiny.test).frames
    images = load_images(frames)

    def quality(testbed: Testbed) -> float:
        return evaluate(testbed, frames, images).psnr

    resumed = Testbed(data=tiny.train, device=device)
    resumed.load_snapshot(trained_snapshot)
    new = Testbed(data=tiny.train, config="base_14", device=device)
    before = quality(resumed)
    losses: dict[str, list[float]] = {"resumed": [], "new": []}
    for name, testbed in (("resumed", resumed), ("new", new)):
        testbed.fit(40, batch_size=8192, callback=lambda t, kept=losses[name]: kept.append(t.loss))
    assert (resumed.training_step, new.training_step) == (TRAINED_STEPS + 40, 40)
    after, afresh = quality(resumed), quality(new)
    assert before > afresh + 8, "the test means something"
    assert after > before - 0.25 * (before - afresh)
    assert np.mean(losses["resumed"]) < 0.5 * np.mean(losses["new"])
