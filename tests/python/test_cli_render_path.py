"""pyngp render --path and --mode: videos and pictures along a camera path, render modes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fields.tiny_scene import FOV_X, SIZE, srgb
from PIL import Image
from pyngp import Lens, LensMode, RenderMode, Testbed
from pyngp.images import read_image


@pytest.fixture
def camera_path(trained, tmp_path) -> Path:
    """Between two training views, in 2 seconds."""
    for view in (0, 1):
        trained.set_camera_to_training_view(view)
        trained.camera_path.add_camera(trained.camera_matrix, 0, trained.scale, FOV_X, 0, 1, 0)
    trained.camera_path.duration_seconds = 2
    trained.camera_path.save(str(tmp_path / "camera_path.json"))
    return tmp_path / "camera_path.json"


def test_pictures_along_a_path(cli, device, trained_snapshot, camera_path, tmp_path):
    """As many as duration and rate say; each what render() makes of its part of the path."""
    arguments = ["--path", camera_path, "--fps", 2, "--device", device, "--shutter", 0, "--background", "white"]
    code, out, _ = cli("render", trained_snapshot, *arguments, "--out", tmp_path / "out")
    assert code == 0 and "4 views rendered" in out
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"000{i}.png" for i in range(4)]
    testbed = Testbed(device=device)
    testbed.load_snapshot(trained_snapshot)
    testbed.load_camera_path(camera_path)
    testbed.nerf.render_min_transmittance = 1e-4
    testbed.background_color = [1, 1, 1, 1]
    for i, file in enumerate(files):
        expected = testbed.render(SIZE, SIZE, 1, True, i / 4, (i + 1) / 4, 2, 0)
        got = read_image(file) / 255.0
        assert got.shape == (SIZE, SIZE, 3)
        np.testing.assert_allclose(got, srgb(expected[..., :3]), atol=0.006)
    cli("render", trained_snapshot, *arguments, "--out", tmp_path / "few", "--seconds", 0.5, "--width", 20)
    assert [read_image(f).shape for f in (tmp_path / "few").iterdir()] == [(20, 20, 3)]


def test_motion_blur(cli, device, trained_snapshot, camera_path, tmp_path):
    """By default half the time of a frame."""
    arguments = ["--path", camera_path, "--fps", 1, "--seconds", 1, "--spp", 8, "--width", 32]
    for name, extra in (("default", []), ("sharp", ["--shutter", 0]), ("half", ["--shutter", 0.5])):
        code, _, err = cli("render", trained_snapshot, *arguments, *extra, "--device", device, "--out", tmp_path / name)
        assert code == 0, err
    pictures = {name: read_image(tmp_path / name / "0000.png") for name in ("default", "sharp", "half")}
    np.testing.assert_array_equal(pictures["default"], pictures["half"])
    assert np.abs(pictures["default"].astype(int) - pictures["sharp"]).max() > 30


def test_videos(cli, trained_snapshot, camera_path, tmp_path):
    arguments = ["--path", camera_path, "--fps", 5, "--width", 33, "--height", 24, "--device", "cpu"]
    assert cli("render", trained_snapshot, *arguments, "--out", tmp_path / "a.webp")[0] == 0
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 10 and image.size == (33, 24)
    av = pytest.importorskip("av")
    assert cli("render", trained_snapshot, *arguments, "--out", tmp_path / "a.mp4")[0] == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 5
    assert len(frames) == 10 and frames[0].shape == (24, 32, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


def test_videos_need_the_extra(cli, trained_snapshot, camera_path, tmp_path, monkeypatch):
    """Said before anything is rendered."""
    monkeypatch.setattr("pyngp.images.find_spec", lambda name: None)
    code, out, err = cli("render", tmp_path / "gone.ingp", "--path", camera_path, "--out", tmp_path / "a.mp4")
    assert code == 1 and out == "" and "pip install 'pyngp[video]'" in err and "a.mp4" in err


@pytest.mark.parametrize("mode", ["ao", "normals", "positions", "depth", "cost", "slice", "distortion", "shade"])
def test_render_modes(mode, cli, device, trained_snapshot, tiny, tmp_path):
    """With the frame's own lens."""
    lens = {"k1": -0.2, "k2": 0.05, "p1": 0.0, "p2": 0.0}
    views = json.loads(tiny.test.read_text()) | {"w": SIZE, "h": SIZE, **lens}
    views["frames"] = views["frames"][1:2]
    (tmp_path / "views.json").write_text(json.dumps(views))
    arguments = ["--views", tmp_path / "views.json", "--device", device, "--mode", mode]
    code, _, err = cli("render", trained_snapshot, *arguments, "--out", tmp_path)
    assert code == 0, err
    picture = read_image(tmp_path / "r_1.png") / 255.0
    testbed = Testbed(device=device)
    testbed.load_snapshot(trained_snapshot)
    testbed.nerf.render_min_transmittance = 1e-4
    testbed.background_color = [0, 0, 0, 0]
    testbed.fov_axis, testbed.fov = 0, FOV_X
    testbed.set_nerf_camera_matrix(tiny.test_poses[1])
    testbed.render_mode = RenderMode.__members__[{"ao": "AO"}.get(mode, mode.capitalize())]
    testbed.autofocus = mode == "slice"  # at the middle of the scene
    testbed.render_lens = Lens(LensMode.OpenCV, list(lens.values()))
    image = testbed.render(SIZE, SIZE)
    if mode == "depth":
        solid = image[..., 3] > 0.9
        depth = image[solid][:, 0] / image[solid][:, 3]
        assert np.corrcoef(depth, picture[solid][:, 0])[0, 1] < -0.95  # near is bright
        return
    expected = srgb(image[..., :3]) if mode in ("shade", "slice") else np.clip(image[..., :3], 0, 1)
    np.testing.assert_allclose(picture, expected, atol=0.006 if device == "cpu" else 0.03)
    assert picture.max() > 0.2


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--path", "a.json", "--views", "b.json"], "give one of"),
        (["--path", "a.json", "--channels", "depth"], "render colours only"),
        (["--orbit", 2, "--mode", "psychedelic"], "is not one of ao, shade"),
        (["--orbit", 2, "--mode", "ao", "--channels", "alpha"], "render colours only"),
        (["--path", "a.json", "--shutter", 2], "shutter"),
    ],
)
def test_wrong_usage(arguments, message, cli, tmp_path):
    code, _, err = cli("render", tmp_path / "gone.ingp", *arguments)
    assert code == 2 and message in err


def test_paths_that_cannot_be_used(cli, trained_snapshot, tmp_path):
    for text, message in (("{}", "not a camera path"), ('{"path": []}', "has no keyframes"), ("[", "path.json")):
        (tmp_path / "path.json").write_text(text)
        code, out, err = cli("render", trained_snapshot, "--path", tmp_path / "path.json", "--out", tmp_path / "o")
        assert code == 1 and out == "" and message in err and "path.json" in err
