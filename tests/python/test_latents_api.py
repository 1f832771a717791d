"""Per-image latents and light directions: instant-ngp's names, scene files, snapshots, and what can't be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fields.tiny_scene import INTRINSICS
from pyngp import Testbed
from pyngp._core import base_nerf_config

CONFIG: dict[str, Any] = json.loads(base_nerf_config())
CONFIG["encoding"] |= {"log2_hashmap_size": 11, "n_levels": 3, "n_features_per_level": 2, "base_resolution": 8}
CONFIG["network"]["n_neurons"] = CONFIG["rgb_network"]["n_neurons"] = 16

TRAIN = """
import json, sys
from pyngp import Testbed
device, scene, config, out, steps, *resume = sys.argv[1:]
testbed = Testbed(data=scene, config=json.loads(config), device=device, deterministic=True)
if resume:
    testbed.load_snapshot(resume[0])
testbed.fit(int(steps), batch_size=2048)
testbed.save_snapshot(out, include_optimizer_state=True, compress=False)
"""


def write_json(tiny: Any, name: str, change: Any = None, **keys: Any) -> Path:
    document = json.loads(tiny.train.read_text()) | keys
    if change:
        for i, frame in enumerate(document["frames"]):
            change(i, frame)
    path = tiny.folder / name
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def latent_scene(tiny):
    path = write_json(tiny, "latents.json", n_extra_learnable_dims=5)
    yield path
    path.unlink()


@pytest.fixture
def testbed(latent_scene, device) -> Testbed:
    return Testbed(data=latent_scene, config=CONFIG, device=device)


def unpack(path: Path) -> Any:
    return msgpack.unpackb(gzip.decompress(path.read_bytes()))


def picture(testbed: Testbed, pose: Any, **appearance: Any) -> np.ndarray:
    return testbed.render_channels(pose, 16, 16, fov_x=40, channels=("rgb",), **appearance)["rgb"]


def test_latents_begin_uniform_and_learn(testbed):
    training = testbed.nerf.training
    assert training.dataset.n_extra_learnable_dims == 5 and testbed.n_extra_dims == 5
    assert training.optimize_extra_dims and training.optimize_per_image_latents
    before = np.array([training.get_extra_dims(i) for i in range(20)])
    assert before.shape == (20, 5) and np.abs(before).max() < 1 and len(np.unique(before)) == 100
    assert before.max() > 0.9 and before.min() < -0.9  # misses: 0.95^100 each
    assert abs(before.mean()) < 5 / np.sqrt(3 * before.size)
    testbed.fit(3, batch_size=2048)
    after = np.array([training.get_extra_dims(i) for i in range(20)])
    # Adam's first steps are the learning rate long, 0.01, whatever the gradient.
    assert 0.001 < np.abs(after - before).max() < 0.035
    training.optimize_extra_dims = False
    testbed.fit(2, batch_size=2048)
    np.testing.assert_array_equal([training.get_extra_dims(i) for i in range(20)], after)
    with pytest.raises(RuntimeError, match="training view 20 does not exist; there are 20"):
        training.get_extra_dims(20)
    training.set_extra_dims(3, [1, 2, 3, 4, 5])
    assert training.get_extra_dims(3) == [1, 2, 3, 4, 5] and training.get_extra_dims(2) == pytest.approx(after[2])
    with pytest.raises(RuntimeError, match="5 finite values; 2 were given"):
        training.set_extra_dims(3, [1, 2])


def test_only_views_in_use_learn(testbed):
    """n_images_for_training: the first n."""
    training = testbed.nerf.training
    before = np.array([training.get_extra_dims(i) for i in range(20)])
    training.n_images_for_training = 7
    testbed.fit(2, batch_size=2048)
    moved = np.any(np.array([training.get_extra_dims(i) for i in range(20)]) != before, axis=1)
    assert moved[:7].all() and not moved[7:].any()


@pytest.mark.parametrize("name", ["optimize_extra_dims", "optimize_per_image_latents"])
def test_switching_on_allocates_sixteen(name, tiny, device):
    testbed = Testbed(data=tiny.train, config=CONFIG, device=device)
    training = testbed.nerf.training
    assert not training.optimize_extra_dims and training.get_extra_dims(0) == []
    assert testbed.nerf.get_rendering_extra_dims() == []
    testbed.fit(2, batch_size=2048)
    n = testbed.n_params()
    setattr(training, name, True)
    assert training.optimize_extra_dims and training.dataset.n_extra_learnable_dims == 16
    assert testbed.n_params() == n + 16 * 16 and testbed.training_step == 0
    assert len(training.get_extra_dims(19)) == 16
    testbed.fit(2, batch_size=2048)
    setattr(training, name, False)
    assert testbed.n_extra_dims == 16 and testbed.training_step == 2  # the network stays
    # Data that says nothing of latents keeps it, and what pictures look like.
    training.set_extra_dims(0, [0.5] * 16)
    testbed.load_training_data(tiny.test)
    assert testbed.n_extra_dims == 16 and testbed.training_step == 2
    assert testbed.nerf.get_rendering_extra_dims() == [0.5] * 16
    assert len(testbed.nerf.training.get_extra_dims(3)) == 16


def test_rendering_extra_dims(testbed, tiny, device, tmp_path):
    testbed.fit(40, batch_size=2048)
    testbed.save_snapshot(tmp_path / "s.ingp")
    testbed = Testbed(device=device)
    testbed.load_snapshot(tmp_path / "s.ingp")
    nerf, training, pose = testbed.nerf, testbed.nerf.training, tiny.poses[0]
    assert nerf.rendering_extra_dims_from_training_view == 0
    assert nerf.get_rendering_extra_dims() == training.get_extra_dims(0)
    first = picture(testbed, pose)
    np.testing.assert_array_equal(first, picture(testbed, pose, image=0))
    nerf.set_rendering_extra_dims_from_training_view(4)
    assert nerf.rendering_extra_dims_from_training_view == 4
    fourth = picture(testbed, pose)
    assert not np.array_equal(first, fourth)
    np.testing.assert_array_equal(fourth, picture(testbed, pose, image=4))
    np.testing.assert_array_equal(fourth, picture(testbed, pose, latent=training.get_extra_dims(4)))
    nerf.set_rendering_extra_dims(np.full(5, 0.25))
    assert nerf.rendering_extra_dims_from_training_view == -1
    assert nerf.get_rendering_extra_dims() == [0.25] * 5
    np.testing.assert_array_equal(picture(testbed, pose), picture(testbed, pose, latent=[0.25] * 5))
    testbed.set_nerf_camera_matrix(pose)
    custom = testbed.render(16, 16)
    nerf.rendering_extra_dims_from_training_view = 4
    assert not np.array_equal(custom, testbed.render(16, 16))
    nerf.rendering_extra_dims_from_training_view = -1
    np.testing.assert_array_equal(custom, testbed.render(16, 16))

    points, directions = np.zeros((4, 3)), np.tile([0.0, 0.0, 1.0], (4, 1))
    rgb, density = testbed.query(points, directions, image=2)
    other, same = testbed.query(points, directions, latent=training.get_extra_dims(3))
    np.testing.assert_array_equal(density, same)  # what is there does not depend on latents
    assert not np.array_equal(rgb, other)
    np.testing.assert_array_equal(other, testbed.query(points, directions, 3)[0])
    np.testing.assert_array_equal(density, testbed.query(points))


def test_appearances_that_cannot_be_used(latent_scene, device, tiny):
    testbed = Testbed(data=latent_scene, config=CONFIG, device=device)
    nerf, pose = testbed.nerf, tiny.poses[0]
    for complaint, call in {
        "training view 20 does not exist": lambda: picture(testbed, pose, image=20),
        "5 finite values; 3": lambda: picture(testbed, pose, latent=[1, 2, 3]),
        "5 finite values; 5": lambda: picture(testbed, pose, latent=[1, 2, 3, 4, np.nan]),
        "5 finite values; 0": lambda: nerf.set_rendering_extra_dims([]),
        "training view -3 ": lambda: nerf.set_rendering_extra_dims_from_training_view(-3),
        "no light directions": lambda: picture(testbed, pose, light_direction=(0, 0, 1)),
        "has no light": lambda: nerf.set_rendering_light_dir((0, 0, 1)),
    }.items():
        with pytest.raises(RuntimeError, match=complaint):
            call()
    for complaint, arguments in {
        "one of image": {"image": 1, "latent": [0] * 5},
        "count from 0": {"image": -1},
        "empty": {"latent": []},
        "light_direction": {"light_direction": (1, 2)},
    }.items():
        with pytest.raises(ValueError, match=complaint):
            picture(testbed, pose, **arguments)
    nerf.rendering_extra_dims_from_training_view = -1
    with pytest.raises(RuntimeError, match="set_rendering_extra_dims"):
        picture(testbed, pose)
    plain = Testbed(data=tiny.train, config=CONFIG, device=device)
    with pytest.raises(RuntimeError, match="neither"):
        picture(plain, pose, latent=[0] * 5)
    with pytest.raises(RuntimeError, match="neither"):
        plain.nerf.set_rendering_extra_dims_from_training_view(0)
    with pytest.raises(RuntimeError, match="neither"):
        plain.fit_latent(tiny.images[0], pose, intrinsics=INTRINSICS)
    np.testing.assert_array_equal(picture(plain, pose), picture(plain, pose, image=0))


def test_bytes_do_not_depend_on_threads(latent_scene, tmp_path, python, device):
    files = []
    for threads in ("1", "3"):
        files.append(tmp_path / f"{threads}.ingp")
        python(TRAIN, device, latent_scene, json.dumps(CONFIG), files[-1], 40, env={"PYNGP_NUM_THREADS": threads})
    assert files[0].read_bytes() == files[1].read_bytes()


def test_training_resumes_exactly(latent_scene, tmp_path, python, device):
    whole, half, resumed = (tmp_path / f"{name}.ingp" for name in ("whole", "half", "resumed"))
    python(TRAIN, device, latent_scene, json.dumps(CONFIG), whole, 40)
    python(TRAIN, device, latent_scene, json.dumps(CONFIG), half, 20)
    python(TRAIN, device, latent_scene, json.dumps(CONFIG), resumed, 20, half)
    assert whole.read_bytes() == resumed.read_bytes()


def test_snapshots_hold_latents_as_the_format_says(testbed, tmp_path):
    """D.2: extra_dims_opt, one an image, and the dataset's n_extra_learnable_dims."""
    testbed.fit(6, batch_size=2048)
    path = tmp_path / "s.ingp"
    testbed.save_snapshot(path)
    nerf = unpack(path)["snapshot"]["nerf"]
    assert nerf["dataset"]["n_extra_learnable_dims"] == 5 and len(nerf["extra_dims_opt"]) == 20
    keys = {"iter", "first_moment", "second_moment", "variable", "learning_rate", "epsilon", "beta1", "beta2"}
    for i, latent in enumerate(nerf["extra_dims_opt"]):
        assert latent.keys() == keys and latent["iter"] == 6
        assert latent["variable"] == testbed.nerf.training.get_extra_dims(i)
        assert len(latent["first_moment"]) == len(latent["second_moment"]) == 5
        constants = (latent["learning_rate"], latent["epsilon"], latent["beta1"], latent["beta2"])
        assert constants == pytest.approx((1e-2, 1e-8, 0.9, 0.99))
    other = Testbed(device="cpu")
    other.load_snapshot(path)
    assert other.n_extra_dims == 5 and other.nerf.training.optimize_extra_dims
    for i in range(20):
        assert other.nerf.training.get_extra_dims(i) == testbed.nerf.training.get_extra_dims(i)
    other.save_snapshot(tmp_path / "again.ingp")
    assert unpack(tmp_path / "again.ingp")["snapshot"]["nerf"]["extra_dims_opt"] == nerf["extra_dims_opt"]


def without_our_key(path: Path, change: Any = None) -> Path:
    """The file as instant-ngp would have written it."""
    document = unpack(path)
    del document["snapshot"]["pyngp"]
    if change:
        change(document["snapshot"])
    theirs = path.with_name("theirs.msgpack")
    theirs.write_bytes(msgpack.packb(document))
    return theirs


def test_latents_are_restored_for_the_same_views_only(testbed, latent_scene, tiny, tmp_path):
    testbed.fit(6, batch_size=2048)
    testbed.save_snapshot(tmp_path / "s.ingp")
    learned = [testbed.nerf.training.get_extra_dims(i) for i in range(20)]

    def latents(scene: Path, snapshot: Path) -> tuple[Testbed, list[list[float]]]:
        t = Testbed(data=scene, config=CONFIG, device="cpu")
        t.load_snapshot(snapshot)
        return t, [t.nerf.training.get_extra_dims(i) for i in range(20)]

    theirs = without_our_key(tmp_path / "s.ingp")
    for scene in (latent_scene, tiny.train):  # the second does not say that there are latents
        assert latents(scene, tmp_path / "s.ingp")[1] == learned
        loaded, found = latents(scene, theirs)
        assert found == learned
        loaded.fit(1, batch_size=2048)

    def move(i: int, frame: Any) -> None:
        if i == 11:
            frame["transform_matrix"][0][3] += 1e-3

    moved = write_json(tiny, "moved.json", move, n_extra_learnable_dims=5)
    loaded, found = latents(moved, tmp_path / "s.ingp")
    initial = Testbed(data=moved, config=CONFIG, device="cpu").nerf.training
    moved.unlink()
    assert found == [initial.get_extra_dims(i) for i in range(20)] and found != learned
    # Pictures look as they did nevertheless.
    np.testing.assert_allclose(loaded.nerf.get_rendering_extra_dims(), learned[0])
    fewer = write_json(tiny, "fewer.json", n_extra_learnable_dims=6)
    other = Testbed(data=fewer, config=CONFIG, device="cpu")
    fewer.unlink()
    with pytest.raises(RuntimeError, match=r"5 extra dimensions.*data 6"):
        other.load_snapshot(tmp_path / "s.ingp")
    assert other.n_extra_dims == 6


def light(i: int, frame: Any) -> None:
    frame["driver_parameters"] = {"LightX": 1.0 + i, "LightY": -2.0, "LightZ": 0.5}


def test_snapshots_of_others_with_light_directions(tiny, tmp_path):
    """The format says nowhere that there are some: the number of parameters does."""
    scene = write_json(tiny, "lights.json", light)
    testbed = Testbed(data=scene, config=CONFIG, device="cpu")
    assert testbed.n_extra_dims == 3
    testbed.save_snapshot(tmp_path / "s.ingp")
    state = unpack(tmp_path / "s.ingp")["snapshot"]
    assert state["nerf"]["dataset"]["n_extra_learnable_dims"] == 0
    assert all(latent["variable"] == [] for latent in state["nerf"]["extra_dims_opt"])
    theirs = without_our_key(tmp_path / "s.ingp")
    other = Testbed(device="cpu")
    other.load_snapshot(theirs)
    assert other.n_extra_dims == 3 and other.nerf.training.get_extra_dims(4) == [0.5] * 3
    with_data = Testbed(data=scene, config=CONFIG, device="cpu")
    scene.unlink()
    with_data.load_snapshot(theirs)
    assert with_data.nerf.training.get_extra_dims(4) == testbed.nerf.training.get_extra_dims(4)


def test_damaged_latents(testbed, tmp_path):
    testbed.save_snapshot(tmp_path / "s.ingp")

    def nerf(**changes: Any) -> Any:
        return lambda s: s["nerf"].update(changes)

    def latent(key: str, value: Any) -> Any:
        return lambda s: s["nerf"]["extra_dims_opt"][3].update({key: value})

    def latents_of_forty(s: Any) -> None:
        s["nerf"]["dataset"]["n_extra_learnable_dims"] = 40
        del s["nerf"]["extra_dims_opt"]

    for words, change in (
        ("extra_dims_opt: must have 20", nerf(extra_dims_opt=[])),
        (r"extra_dims_opt\[3\].variable: must have 5", latent("variable", [0.0] * 4)),
        (r"extra_dims_opt\[3\].variable\[2\].*number", latent("variable", [0.0, 0.0, "x", 0.0, 0.0])),
        (r"extra_dims_opt\[3\].first_moment", latent("first_moment", [float("nan")] * 5)),
        (r"second_moment\[0\]: is -1", latent("second_moment", [-1.0] * 5)),
        (r"extra_dims_opt\[3\].iter", latent("iter", -1)),
        ("n_extra_learnable_dims", lambda s: s["nerf"]["dataset"].update(n_extra_learnable_dims=1 << 20)),
        (
            "must have 40 elements, as .*n_extra_learnable_dims says, not 5",
            lambda s: s["nerf"]["dataset"].update(n_extra_learnable_dims=40),
        ),
        ("params_binary: has", latents_of_forty),
    ):
        with pytest.raises(RuntimeError, match=words):
            Testbed(device="cpu").load_snapshot(without_our_key(tmp_path / "s.ingp", change))


@pytest.mark.parametrize("value", [-1, 257, 1.5, "4", True, None, []])
def test_wrong_latent_sizes(value, tiny):
    path = write_json(tiny, "wrong.json", n_extra_learnable_dims=value)
    with pytest.raises(RuntimeError, match=r"wrong\.json: n_extra_learnable_dims is"):
        Testbed(data=path, device="cpu")
    path.unlink()


@pytest.mark.parametrize(
    "value,words",
    [
        (3, "must be an object"),
        ({}, "must not all be 0"),
        ({"LightX": 0, "LightY": 0.0}, "must not all be 0"),
        ({"LightX": "1"}, "LightX is '1'"),
        ({"LightZ": float("nan")}, "LightZ"),
    ],
)
def test_wrong_light_directions(value, words, tiny):
    def change(i: int, frame: Any) -> None:
        if i == 2:
            frame["driver_parameters"] = value

    path = write_json(tiny, "wrong.json", change)
    with pytest.raises(RuntimeError, match=f"wrong.json: frame 2.*driver_parameters.*{words}"):
        Testbed(data=path, device="cpu")
    path.unlink()


def test_lights_take_the_place_of_latents(tiny):
    """C.3; frames without driver_parameters have no light."""

    def change(i: int, frame: Any) -> None:
        if i == 2:
            frame["driver_parameters"] = {"LightX": 3.0}

    path = write_json(tiny, "one.json", change, n_extra_learnable_dims=7)
    testbed = Testbed(data=path, config=CONFIG, device="cpu")
    path.unlink()
    training = testbed.nerf.training
    assert training.dataset.n_extra_learnable_dims == 0 and not training.optimize_extra_dims
    assert training.get_extra_dims(2) == [0.5, 0.5, 1.0] and training.get_extra_dims(3) == [0.5, 0.5, 0.5]
    with pytest.raises(RuntimeError, match="light_dir"):
        training.set_extra_dims(2, [0, 0, 0])
    training.optimize_extra_dims = True  # trains nothing
    testbed.fit(2, batch_size=2048)
    assert testbed.n_extra_dims == 3 and training.get_extra_dims(2) == [0.5, 0.5, 1.0]


def test_eval_fits_halves(testbed, tiny, tmp_path, cli, device):
    testbed.fit(30, batch_size=2048)
    testbed.save_snapshot(tmp_path / "s.ingp")
    figures = []
    for options in ((), ("--fit-latents", "left")):
        report = tmp_path / "report.json"
        arguments = ("eval", tmp_path / "s.ingp", "--test", tiny.test, "--device", device, "--report", report)
        code, _, err = cli(*arguments, *options)
        assert code == 0, err
        figures.append(json.loads(report.read_text())["psnr"])
    assert figures[0] != figures[1]
    assert cli("eval", tmp_path / "s.ingp", "--test", tiny.test, "--fit-latents", "middle")[0] == 2
