"""transforms.json: what each key does, warnings and errors (specification C)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyngp import LensMode, Testbed
from pyngp.dataset import DatasetWarning, load_images, read_scene

POSE = [[1.0, 0, 0, 0.1], [0, 1, 0, 0.2], [0, 0, 1, 3], [0, 0, 0, 1]]
W, H = 12, 8


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images of 12 x 8."""
    for i in range(3):
        Image.fromarray(np.full((H, W, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def frame(name: str = "0.png", **keys: Any) -> dict[str, Any]:
    return {"file_path": name, "transform_matrix": POSE, **keys}


def write(folder: Path, frames: list[Any] | None = None, name: str = "transforms.json", **keys: Any) -> Path:
    document = {"camera_angle_x": 0.8, **keys, "frames": [frame()] if frames is None else frames}
    path = folder / name
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return path


def load(path: Path) -> Any:
    """The dataset as it reaches the library; warnings are errors."""
    testbed = Testbed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testbed.load_training_data(path)
    return testbed.nerf.training.dataset


def fov(angle: float, size: int) -> float:
    return 0.5 * size / np.tan(angle / 2)


NO_ANGLE = {"camera_angle_x": None}
FOCAL = [
    ({}, {}, (fov(0.8, W), fov(0.8, W))),
    ({"camera_angle_y": 0.5}, {}, (fov(0.8, W), fov(0.5, H))),
    ({**NO_ANGLE, "camera_angle_y": 0.5}, {}, (fov(0.5, H), fov(0.5, H))),
    ({"fl_x": 20}, {}, (20, 20)),  # pixels before angles; not rescaled if the image is not w x h
    ({"fl_x": 20, "w": 24, "h": 16}, {}, (20, 20)),
    ({"fl_x": 20, "fl_y": 30}, {}, (20, 30)),
    ({**NO_ANGLE, "fl_y": 30}, {}, (30, 30)),
    ({"fl_x": 20, "x_fov": 90}, {}, (W / 2, W / 2)),  # degrees before pixels
    ({"x_fov": 90, "y_fov": 60}, {}, (W / 2, fov(np.pi / 3, H))),
    ({"fl_x": 20}, {"fl_x": 40}, (40, 40)),  # the frame's before the file's
    ({}, {"camera_angle_x": 0.3}, (fov(0.3, W), fov(0.3, W))),
    (NO_ANGLE, {"fl_x": 9.5}, (9.5, 9.5)),
]


@pytest.mark.parametrize("of_file,of_frame,expected", FOCAL)
def test_focal_length(of_file, of_frame, expected, folder):
    [view] = load(write(folder, [frame(**of_frame)], **of_file)).metadata
    np.testing.assert_allclose(view.focal_length, expected, rtol=1e-6)
    assert view.resolution.tolist() == [W, H]


CENTERS = [
    ({}, {}, (0.5, 0.5)),
    ({"cx": 3, "cy": 6, "w": 12, "h": 8}, {}, (0.25, 0.75)),
    ({"cx": 6, "w": 24}, {}, (0.25, 0.5)),
    ({"cx": 6, "w": 24}, {"cx": 18, "w": 24, "cy": 2, "h": 8}, (0.75, 0.25)),
]


@pytest.mark.parametrize("of_file,of_frame,expected", CENTERS)
def test_principal_point(of_file, of_frame, expected, folder):
    [view] = load(write(folder, [frame(**of_frame)], **of_file)).metadata
    np.testing.assert_allclose(view.principal_point, expected, rtol=1e-6)


FTHETA = {"ftheta_p0": 0.01, "ftheta_p1": 0.02, "ftheta_p2": 3e-4, "ftheta_p3": 4e-5, "ftheta_p4": 5e-6}
LENSES = [
    ({}, LensMode.Perspective, [0, 0, 0, 0]),
    ({"k1": 0, "k2": 0, "p1": 0, "p2": 0}, LensMode.Perspective, [0, 0, 0, 0]),
    ({"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}, LensMode.OpenCV, [0.1, 0.2, 0.3, 0.4]),
    ({"p2": 0.4}, LensMode.OpenCV, [0, 0, 0, 0.4]),
    ({"is_fisheye": False, "k2": 0.2}, LensMode.OpenCV, [0, 0.2, 0, 0]),
    ({"is_fisheye": True, "k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4}, LensMode.OpenCVFisheye, [0.1, 0.2, 0.3, 0.4]),
    # B8: instant-ngp loses k3 and k4 to p1 and p2 here.
    ({"is_fisheye": True, "k3": 0.3, "k4": 0.4, "p1": 0, "p2": 0}, LensMode.OpenCVFisheye, [0, 0, 0.3, 0.4]),
    ({**FTHETA, "w": 24, "h": 16}, LensMode.FTheta, [0.01, 0.02, 3e-4, 4e-5, 5e-6, 24, 16]),
    ({"ftheta_p0": 0, "ftheta_p1": 0.02, "w": 24, "h": 16}, LensMode.FTheta, [0, 0.02, 0, 0, 0, 24, 16]),
    ({"latlong": True}, LensMode.LatLong, [0] * 7),
    ({"equirectangular": 1}, LensMode.Equirectangular, [0] * 7),
    ({"orthographic": {}}, LensMode.Orthographic, [0] * 7),
    ({"latlong": True, "k1": 0.1}, LensMode.LatLong, [0] * 7),
    ({**FTHETA, "latlong": True, "equirectangular": True}, LensMode.Equirectangular, [0] * 7),
]  # fmt: skip


@pytest.mark.parametrize("keys,mode,params", LENSES)
@pytest.mark.parametrize("where", ["file", "frame"])
def test_lens(keys, mode, params, where, folder):
    path = write(folder, **keys) if where == "file" else write(folder, [frame(**keys)])
    lens = load(path).metadata[0].lens
    assert lens.mode == mode
    np.testing.assert_allclose(lens.params[: len(params)], params, rtol=1e-6)


def test_a_frames_lens_replaces_the_files(folder):
    frames = [frame("0.png", k1=0), frame("1.png", k1=0.1), frame("2.png", orthographic=True)]
    modes = [view.lens.mode for view in load(write(folder, frames, latlong=True)).metadata]
    assert modes == [LensMode.LatLong, LensMode.OpenCV, LensMode.Orthographic]


@pytest.mark.parametrize("keys", [{"latlong": 1}, {"equirectangular": 1}, {**FTHETA, "w": W, "h": H}], ids=str)
def test_lenses_without_a_focal_length(keys, folder):
    [view] = load(write(folder, **NO_ANGLE, **keys)).metadata
    np.testing.assert_array_equal(view.focal_length, [1000, 1000])  # A.11
    with pytest.raises(RuntimeError, match="no focal length"):
        load(write(folder, **NO_ANGLE, orthographic=True))


@pytest.mark.parametrize(
    "keys,message",
    [
        (FTHETA, "ftheta_p0 to ftheta_p4 need w and h"),
        ({**FTHETA, "w": 24, "h": 0}, "ftheta_p0 to ftheta_p4 need w and h"),
        ({**FTHETA, "w": 24, "h": 16, "ftheta_p3": "x"}, "ftheta_p3 is 'x'; it must be a number"),
        ({"ftheta_p0": 0.1, "w": 24, "h": 16}, "has the same angle everywhere"),
        ({"ftheta_p0": 2, "ftheta_p1": 0.1, "w": 24, "h": 16}, "sees nothing.*at the principal point 2"),
    ],
)
def test_bad_ftheta_parameters(keys, message, folder):
    with pytest.raises(RuntimeError, match=rf"0\.png.*{message}"):
        load(write(folder, **keys))


def test_a_lens_that_is_false(folder):
    """Its presence counts (C.2), which is worth a word."""
    with pytest.warns(DatasetWarning, match="latlong is false, but its presence alone makes the lens LatLong"):
        testbed = Testbed(data=write(folder, latlong=False))
    assert testbed.nerf.training.dataset.metadata[0].lens.mode == LensMode.LatLong


def test_scale_and_offset(folder):
    data = load(write(folder))
    assert data.scale == pytest.approx(0.33) and data.aabb_scale == 1
    np.testing.assert_array_equal(data.offset, [0.5] * 3)
    data = load(write(folder, scale=0.5, offset=[0.1, 0.2, 0.3], aabb_scale=16))
    assert data.scale == 0.5 and data.aabb_scale == 16
    np.testing.assert_allclose(data.offset, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(load(write(folder, offset=0.25)).offset, [0.25] * 3)
    data = load(write(folder, scale=9, offset=9, aabb=[[-1, 0, 0], [1, 1, 4]]))
    assert data.scale == 0.25
    np.testing.assert_allclose(data.offset, [0.5, 0.375, 0])


def test_render_box_and_up(folder):
    path = write(folder, render_aabb=[[0.25, 0.25, -1], [0.75, 2, 0.5]], up=[1, 2, 3])
    testbed = Testbed(data=path)
    np.testing.assert_allclose(testbed.render_aabb.min, [0.25, 0.25, 0])  # within the scene box
    np.testing.assert_allclose(testbed.render_aabb.max, [0.75, 1, 0.5])
    np.testing.assert_array_equal(testbed.up_dir, [2, 3, 1])
    np.testing.assert_array_equal(testbed.nerf.training.dataset.up, [2, 3, 1])


def test_mitsuba(folder):
    testbed = Testbed(data=write(folder, from_mitsuba=True))
    data = testbed.nerf.training.dataset
    assert data.from_mitsuba and data.scale == pytest.approx(0.66)
    np.testing.assert_allclose(data.offset, [0.165] * 3, rtol=1e-6)
    np.testing.assert_allclose(testbed.cameras()[0], np.array(POSE)[:3], atol=1e-6)
    # C.5: no cycle of the rows; columns 0 and 2 negated in addition.
    testbed.set_camera_to_training_view(0)
    expected = np.array(POSE)[:3] * [-1, -1, 1, 0.66]
    expected[:, 3] += 0.165
    np.testing.assert_allclose(testbed.camera_matrix, expected, rtol=1e-6, atol=1e-7)
    assert not load(write(folder, from_mitsuba=False)).from_mitsuba


def test_frames_in_natural_order(folder):
    names = ["img10", "img2", "img1", "a/b3", "img02x", "a/b20"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (W, H)).save(folder / f"{name}.png")
    data = load(write(folder, [frame(f"{n}.png") for n in names]))
    assert data.paths == [f"{n}.png" for n in ("a/b3", "a/b20", "img1", "img2", "img02x", "img10")]
    data = load(write(folder, [frame(f"{n}.png") for n in names], n_frames=2))
    assert data.paths == ["a/b3.png", "a/b20.png"]


def test_file_paths(folder):
    """Backslashes, ./, a missing extension, an unusual one."""
    (folder / "sub").mkdir()
    Image.new("RGB", (W, H)).save(folder / "sub" / "x.jpg")
    Image.new("RGB", (W, H)).save(folder / "v1.5.png")
    names = ["sub\\x.jpg", "./0.png", "1", "sub/x", "v1.5"]
    scene = read_scene(write(folder, [frame(n) for n in names]))
    found = {f.file_path: f.image_path.relative_to(folder).as_posix() for f in scene.frames}
    assert found == {
        "sub/x.jpg": "sub/x.jpg",
        "./0.png": "0.png",
        "1": "1.png",
        "sub/x": "sub/x.jpg",
        "v1.5": "v1.5.png",
    }
    assert len(load_images(scene.frames)) == 5


def test_comments(folder):
    path = folder / "transforms.json"
    text = json.dumps({"camera_angle_x": 0.8, "frames": [frame(note="a // b /* c */")]}, indent=1)
    path.write_text("// first\n/* second\n */" + text.replace('"frames"', '/*x*/ "frames"', 1) + "\n// last")
    assert load(path).n_images == 1


def test_byte_order_mark(folder):
    path = write(folder)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path).n_images == 1


def test_folder(folder):
    """All files with frames; others' global keys still apply; sorted by name."""
    write(folder, [frame("0.png"), frame("1.png")], name="transforms_a.json")
    write(folder, [frame("2.png")], name="transforms_b.json", camera_angle_x=0.4)
    (folder / "c.json").write_text('{"aabb_scale": 4}')
    data = load(folder)
    assert data.n_images == 3 and data.aabb_scale == 4
    assert data.metadata[2].focal_length[0] > data.metadata[0].focal_length[0]


def test_excluded_frames(folder):
    """Those that another file lists, also under another spelling."""
    write(folder, [frame("0.png"), frame("1.png"), frame("./2")], name="train.json")
    test = write(folder, [frame("./1.png"), frame("2.png")], name="test.json")
    for scene in (folder, folder / "train.json"):
        assert [f.file_path for f in read_scene(scene, exclude=test).frames] == ["0.png"]
    with pytest.raises(RuntimeError, match=r"no frames to use besides those of .*test.json"):
        read_scene(test, exclude=test)


def test_progress(folder):
    calls = []
    path = write(folder, [frame(f"{i}.png") for i in range(3)])
    Testbed().load_training_data(path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def one_warning(path: Path) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Testbed().load_training_data(path)
    assert len(caught) == 1 and caught[0].category is DatasetWarning, [str(c.message) for c in caught]
    message = str(caught[0].message)
    assert "\n" not in message and str(path) in message
    return message


def test_unused_keys_are_named_in_one_line(folder):
    message = one_warning(write(folder, [frame("0.png"), frame("1.png")], envmap="e.png", importance_sampling=True))
    assert message.endswith("not used yet: envmap, importance_sampling")


def test_the_sharpness_rule(folder):
    """C.2: a missing image is forgiven only if the first frame has a sharpness."""
    frames = [frame("0.png", sharpness=1), frame("1.png", sharpness=10), frame("gone.png", sharpness=9)]
    assert "3 frames listed, 2 used (1 without an image dropped" in one_warning(write(folder, frames))
    message = one_warning(write(folder, frames, sharpness_discard_threshold=0.5))
    assert "3 frames listed, 1 used (1 without an image, 1 blurred dropped" in message
    for entry in frames:
        del entry["sharpness"]
    with pytest.raises(RuntimeError, match=r"frame 2 \(gone.png\): its image .*gone.png does not exist"):
        load(write(folder, frames))
    one = [frame("0.png", sharpness=5)]
    assert load(write(folder, one, sharpness_discard_threshold=0.9)).n_images == 1, "0/0 in instant-ngp"


ERRORS: list[tuple[dict[str, Any], list[Any] | None, str]] = [
    ({"camera_angle_x": None}, None, r"frame 0 \(0.png\): no focal length; give camera_angle_x"),
    ({"camera_angle_x": "wide"}, None, "camera_angle_x is 'wide'"),
    ({"camera_angle_x": -1}, None, "camera_angle_x is -1"),
    ({"x_fov": 180}, None, "x_fov is 180"),
    ({"fl_x": 0}, None, "fl_x is 0"),
    ({"cx": 4}, None, "cx needs w"),
    ({"cy": 4, "h": 0}, None, "cy needs h"),
    ({"k1": [1]}, None, r"k1 is \[1\]"),
    ({"aabb_scale": 3}, None, "aabb_scale is 3; it must be a power of two from 1 to 128"),
    ({"aabb_scale": 256}, None, "aabb_scale is 256"),
    ({"aabb_scale": True}, None, "aabb_scale is True"),
    ({"scale": 0}, None, "scale is 0"),
    ({"offset": [0, 1]}, None, r"offset is \[0, 1\]; it must be three numbers"),
    ({"aabb": [[0, 0, 0]]}, None, "aabb must be"),
    ({"aabb": [[1, 1, 1], [0, 0, 0]]}, None, "aabb is empty"),
    ({"up": "y"}, None, "up is 'y'"),
    ({"n_frames": 0}, None, "no frames to use"),
    ({"n_frames": -1}, None, "n_frames is -1"),
    ({}, [], "no frames to use"),
    ({}, [3], "frame 0: must be an object"),
    ({}, [{"transform_matrix": POSE}], "frame 0: file_path is missing"),
    ({}, [frame(), {"file_path": "1.png"}], r"frame 1 \(1.png\): transform_matrix is missing"),
    ({}, [frame() | {"transform_matrix": POSE[:2]}], r"frame 0 \(0.png\): transform_matrix must be"),
    ({}, [frame() | {"transform_matrix": [[float("nan")] * 4] * 4}], r"\(0.png\): transform_matrix must be"),
    ({}, [frame() | {"transform_matrix": [[0] * 4] * 4}], "0.png: transform_matrix is not a camera pose"),
    ({}, [{"file_path": "0.png", "transform_matrix_start": POSE, "transform_matrix_end": POSE[:2]}],
     r"frame 0 \(0.png\): transform_matrix_end must be"),
    ({"rolling_shutter": [1, 2]},
     [{"file_path": "0.png", "transform_matrix_start": POSE, "transform_matrix_end": POSE}],
     "rolling_shutter is .*; it must be"),
    ({}, [frame("none.png")], r"frame 0 \(none.png\): its image .*none.png does not exist"),
    ({}, [frame("sub")], r"frame 0 \(sub\): its image .*sub does not exist"),
    ({"frames_": 1}, [frame(camera_angle_x="x")], r"frame 0 \(0.png\): camera_angle_x is 'x'"),
]  # fmt: skip


@pytest.mark.parametrize("keys,frames,message", ERRORS, ids=[e[2] for e in ERRORS])
def test_errors_name_file_frame_and_key(keys, frames, message, folder):
    (folder / "sub").mkdir()
    path = write(folder, frames, **keys)
    testbed = Testbed()
    with pytest.raises(RuntimeError, match=message) as raised:
        testbed.load_training_data(path)
    assert str(path) in str(raised.value) or "not a camera pose" in message
    assert "\n" not in str(raised.value)
    assert testbed.nerf.training.dataset.n_images == 0


def test_broken_json_says_where(folder):
    path = folder / "transforms.json"
    path.write_text('{"frames": [\n  // a comment\n  {"file_path": "0.png",,}\n]}')
    with pytest.raises(RuntimeError, match=rf"{path}: is not valid JSON: .*line 3 column 25"):
        load(path)
    path.write_bytes(b'{"frames": "\xff"}')
    with pytest.raises(RuntimeError, match=rf"{path}: cannot be read"):
        load(path)


def test_missing_files(tmp_path):
    with pytest.raises(RuntimeError, match=rf"{tmp_path}: the folder holds no .json file"):
        load(tmp_path)
    with pytest.raises(RuntimeError, match=r"gone.json: no such file or folder"):
        load(tmp_path / "gone.json")
    with pytest.raises(RuntimeError, match=r"gone.json: no such file"):
        read_scene(tmp_path, exclude=tmp_path / "gone.json")
    (tmp_path / "a.json").write_text('{"aabb_scale": 2}')
    with pytest.raises(RuntimeError, match="no frames to use"):
        load(tmp_path)


def test_fox(data):
    """Lists 67 frames, has 50; OpenCV lens, portrait photos."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = read_scene(data / "fox")
    messages = [str(w.message) for w in caught]
    assert sum("67 frames listed, 50 used (17 without an image dropped" in m for m in messages) == 1
    assert len(messages) <= 2 and len(scene.frames) == 50
    [first, *_] = scene.frames
    load_images([first])
    assert (first.intrinsics.width, first.intrinsics.height) == (1080, 1920)
    assert first.intrinsics.lens.mode == LensMode.OpenCV
