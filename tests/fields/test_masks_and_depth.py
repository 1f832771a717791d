"""What lies beside training images: masks that hide pixels, depth maps, rays; and images that come one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import (
    FOCAL,
    INTRINSICS,
    SIZE,
    TinyScene,
    linear,
    photograph,
    pixel_rays,
    poses,
    trace,
    transforms,
)
from numpy.typing import NDArray
from PIL import Image
from pyngp import LossType, NerfActivation, Testbed
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate

Change = Callable[[NDArray[np.uint8], NDArray[np.bool_]], NDArray[Any]]


def new(device: str, config: Any) -> Testbed:
    return Testbed(config=config, device=device, deterministic=True)


def saved(testbed: Testbed, path: Path) -> bytes:
    testbed.save_snapshot(path, include_optimizer_state=True, compress=False)
    return path.read_bytes()


# --- masks -----------------------------------------------------------------------------------------------------------


def random_masks(shape: tuple[int, ...], seed: int = 5) -> NDArray[np.bool_]:
    """Blocks of 6 x 6 pixels, half of them masked."""
    n, height, width = shape[:3]
    blocks = np.random.default_rng(seed).random((n, height // 6, width // 6)) < 0.5
    return np.repeat(np.repeat(blocks, 6, 1), 6, 2)


def painted(images: NDArray, masks: NDArray[np.bool_]) -> NDArray:
    """Other colours and other alpha where the mask is set."""
    other = np.random.default_rng(6).integers(0, 256, images.shape, np.uint8)
    return np.where(masks[..., None], other, images)


def test_masked_pixels_cannot_change_a_byte(tiny, small_config, device, tmp_path):
    """Of a snapshot with the optimizer's state; what is not masked can."""
    masks = random_masks(tiny.images.shape)
    others = painted(tiny.images, masks)
    assert (others != tiny.images)[masks].mean() > 0.9, "the test means something"
    snapshots = []
    for i, images in enumerate((tiny.images, others, painted(tiny.images, ~masks))):
        testbed = new(device, small_config)
        testbed.set_images(images, tiny.poses, INTRINSICS, masks=masks)
        testbed.fit(40, batch_size=4096)
        snapshots.append(saved(testbed, tmp_path / f"{i}.ingp"))
    assert snapshots[0] == snapshots[1]
    assert snapshots[0] != snapshots[2]


def test_masked_pixels_of_files_cannot_change_a_byte(tiny, small_config, device, tmp_path):
    """dynamic_mask_*.png beside the images, with sharpening, which looks at neighbours."""
    masks = random_masks(tiny.images.shape)
    snapshots = []
    for name, images in (("a", tiny.images), ("b", painted(tiny.images, masks))):
        folder = tmp_path / name
        (folder / "train").mkdir(parents=True)
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            Image.fromarray(image).save(folder / "train" / f"r_{i}.png")
            Image.fromarray(np.uint8(mask)).save(folder / "train" / f"dynamic_mask_r_{i}.png")
        document = json.loads(tiny.train.read_text()) | {"sharpen": 0.3}
        (folder / "transforms.json").write_text(json.dumps(document))
        testbed = Testbed(data=folder, config=small_config, device=device, deterministic=True)
        testbed.fit(20, batch_size=4096)
        snapshots.append(saved(testbed, tmp_path / f"{name}.ingp"))
    assert snapshots[0] == snapshots[1]


def test_masks_keep_an_occluder_out(tiny, device):
    """A white bar before half of every training view: without masks it is learnt, with them it is not there."""
    masks = np.zeros(tiny.images.shape[:3], bool)
    for i in range(len(masks)):
        at = 6 * (i % 5)
        masks[i, :, at : at + SIZE // 2] = True
    images = np.where(masks[..., None], np.uint8(255), tiny.images)
    psnr = []
    frames = read_scene(tiny.test).frames
    references = load_images(frames)
    for given in (None, masks):
        testbed = new(device, "base_14")
        testbed.set_images(images, tiny.poses, INTRINSICS, masks=given)
        testbed.fit(250, batch_size=8192)
        psnr.append(evaluate(testbed, frames, references).psnr)
    print("PSNR without and with masks:", psnr)
    assert psnr[1] > psnr[0] + 4


def test_a_mask_for_some(tiny, small_config, device):
    """None: nothing is masked, as if there were no masks."""
    nothing, none = np.zeros(tiny.images.shape[1:3], bool), [None] * 20
    losses = []
    for masks in (None, none, [nothing, *none[1:]]):
        testbed = new(device, small_config)
        testbed.set_images(tiny.images, tiny.poses, INTRINSICS, masks=masks)
        testbed.fit(4, batch_size=512)
        losses.append(testbed.loss)
    assert losses[0] == losses[1] == losses[2]


def test_evaluation_leaves_masked_pixels_out(tiny, trained, tmp_path):
    """Their colours don't matter, and what is left is measured as before."""
    (tmp_path / "test").mkdir()
    masks = random_masks(tiny.test_images.shape)
    results = []
    for images in (tiny.test_images, painted(tiny.test_images, masks)):
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            Image.fromarray(image).save(tmp_path / "test" / f"r_{i}.png")
            Image.fromarray(np.uint8(255 * mask)).save(tmp_path / "test" / f"dynamic_mask_r_{i}.png")
        (tmp_path / "t.json").write_text(tiny.test.read_text())
        frames = read_scene(tmp_path / "t.json").frames
        results.append(evaluate(trained, frames, load_images(frames)))
    assert results[0].psnr == results[1].psnr and results[0].ssim == results[1].ssim
    plain = evaluate(trained, read_scene(tiny.test).frames)
    # Half of the pixels, drawn at random: the mean square error varies by a part of itself.
    assert results[0].psnr == pytest.approx(plain.psnr, abs=2) and results[0].psnr != plain.psnr


# --- depth -----------------------------------------------------------------------------------------------------------


def true_depth(pose: NDArray[np.float64], size: int = SIZE) -> NDArray[np.float64]:
    """(H,W) along the camera's forward axis, world units; 0 where nothing is."""
    origin, directions = pixel_rays(pose, size, size, INTRINSICS, (0.5, 0.5))
    t = trace(origin, directions)[1]
    return np.where(np.isfinite(t), t, 0.0) * (directions @ -pose[:, 2])


def depth_error(testbed: Testbed, cameras: NDArray[np.float64]) -> float:
    """Mean absolute error over the pixels that the subject covers, world units."""
    errors = []
    for pose in cameras:
        rendered = testbed.render_channels(pose, SIZE, SIZE, intrinsics=INTRINSICS, channels=("depth",))["depth"]
        wanted = true_depth(pose)
        errors.append(np.abs(rendered - wanted)[(wanted > 0) & np.isfinite(rendered)])
    assert sum(map(len, errors)) > 0.95 * sum(np.count_nonzero(true_depth(p)) for p in cameras)
    return float(np.concatenate(errors).mean())


@pytest.fixture(scope="module")
def six_views() -> tuple[NDArray, NDArray, NDArray]:
    """Poses, images and depths of six views all around."""
    cameras = poses(6)
    return cameras, np.stack([photograph(p) for p in cameras]), np.stack([true_depth(p) for p in cameras])


def supervised(device: str, cameras: Any, images: Any, depths: Any, weight: float, **keys: Any) -> Testbed:
    testbed = new(device, "base_14")
    testbed.set_images(images, cameras, INTRINSICS, depths=depths, **keys)
    testbed.nerf.training.depth_supervision_lambda = weight
    testbed.fit(150, batch_size=8192)
    return testbed


def test_depth_supervision_halves_the_depth_error(six_views, device):
    """On held-out views of a set of six; measured on the CPU: 0.13 to 0.04 world units, the subject being 2 across."""
    held_out = poses(8, phase=1.2)
    errors = {weight: depth_error(supervised(device, *six_views, weight), held_out) for weight in (0.0, 1.0)}
    print("depth error without and with supervision:", errors)
    assert errors[1.0] <= 0.5 * errors[0.0]


def test_depth_supervision_follows_the_units(six_views, device):
    """A scene of twice the size with half the scale is the same scene: so are its depths."""
    cameras, images, depths = six_views
    larger = cameras.copy()
    larger[:, :, 3] *= 2
    losses = [
        supervised(device, *given, 1.0, scale=scale).loss
        for given, scale in (((cameras, images, depths), 0.33), ((larger, images, 2 * depths), 0.165))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_depth_files_equal_arrays(six_views, small_config, device, tmp_path):
    """16-bit PNGs in units of integer_depth_scale, and what set_images() takes."""
    cameras, images, depths = six_views
    raw = np.round(depths / 2e-4).astype(np.uint16)
    document = transforms([f"{i}.png" for i in range(6)], cameras) | {"integer_depth_scale": 2e-4}
    for i in range(6):
        Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
        Image.fromarray(raw[i]).save(tmp_path / f"depth{i}.png")
        document["frames"][i]["depth_path"] = f"depth{i}.png"
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    files, arrays, colours = (new(device, small_config) for _ in range(3))
    files.load_training_data(tmp_path)
    arrays.set_images(images, cameras, INTRINSICS, depths=raw * 2e-4)
    colours.load_training_data(tmp_path)
    parameters = []
    for testbed, weight in ((files, 1.0), (arrays, 1.0), (colours, 0.0)):
        testbed.nerf.training.depth_supervision_lambda = weight
        testbed.fit(5, batch_size=2048)
        parameters.append(testbed.params().astype(np.float64))
    difference = [np.abs(p - parameters[0]).mean() for p in parameters]
    assert difference[1] < 0.1 * difference[2], difference  # rounding, and what Adam makes of it


def test_without_weight_depths_change_nothing(six_views, small_config, device, tmp_path):
    cameras, images, depths = six_views
    snapshots = []
    for i, given in enumerate((None, depths, np.zeros_like(depths), np.full_like(depths, np.nan))):
        testbed = new(device, small_config)
        testbed.set_images(images, cameras, INTRINSICS, depths=given)
        if i >= 2:  # nothing is known, so the weight does not matter
            testbed.nerf.training.depth_supervision_lambda = 1.0
        testbed.fit(10, batch_size=2048)
        snapshots.append(testbed.params().tobytes())
    assert len(set(snapshots)) == 1
    testbed = new(device, small_config)
    testbed.set_images(images, cameras, INTRINSICS, depths=depths)
    testbed.nerf.training.depth_supervision_lambda = 1.0
    testbed.fit(10, batch_size=2048)
    assert testbed.params().tobytes() != snapshots[0]


def test_depth_settings_are_resumed(six_views, small_config, device, tmp_path):
    """Byte for byte; the loss type matters."""
    cameras, images, depths = six_views

    def prepared(loss: LossType = LossType.Huber) -> Testbed:
        testbed = new(device, small_config)
        testbed.set_images(images, cameras, INTRINSICS, depths=depths)
        testbed.nerf.training.depth_supervision_lambda = 0.5
        testbed.nerf.training.depth_loss_type = loss
        return testbed

    whole, half, other = prepared(), prepared(), prepared(LossType.L1)
    half.fit(5, batch_size=1024)
    half.save_snapshot(tmp_path / "half.ingp", include_optimizer_state=True)
    resumed = new(device, small_config)
    resumed.set_images(images, cameras, INTRINSICS, depths=depths)
    resumed.load_snapshot(tmp_path / "half.ingp")
    assert resumed.nerf.training.depth_loss_type == LossType.Huber
    assert resumed.nerf.training.depth_supervision_lambda == 0.5
    resumed.fit(5, batch_size=1024)
    for testbed in (whole, other):
        testbed.fit(10, batch_size=1024)
    assert np.array_equal(whole.params(), resumed.params())
    assert not np.array_equal(whole.params(), other.params())


def test_depth_supervision_can_be_switched_while_training(six_views, small_config, device):
    cameras, images, depths = six_views
    testbed = new(device, small_config)
    testbed.set_images(images, cameras, INTRINSICS, depths=depths)
    seen = []
    for weight in (0.0, 1.0, 0.0):
        testbed.nerf.training.depth_supervision_lambda = weight
        testbed.fit(3, batch_size=1024)
        seen.append(testbed.loss)
    assert np.isfinite(seen).all() and testbed.training_step == 9


# --- rays ------------------------------------------------------------------------------------------------------------


def write_rays(folder: Path, name: str, pose: NDArray, shear: float = 1.0) -> None:
    origin, directions = pixel_rays(pose, SIZE, SIZE, INTRINSICS, (0.5, 0.5))
    rays = np.concatenate([np.broadcast_to(origin, directions.shape), shear * directions], axis=-1)
    rays.astype("<f4").tofile(folder / f"rays_{name}.dat")


@pytest.fixture
def ray_scene(tiny: TinyScene, tmp_path: Path) -> Path:
    """The tiny scene, its cameras given by ray files; the poses in the transforms file are all the same, wrong one."""
    (tmp_path / "train").mkdir()
    for i, (pose, image) in enumerate(zip(tiny.poses, tiny.images, strict=True)):
        Image.fromarray(image).save(tmp_path / "train" / f"r_{i}.png")
        write_rays(tmp_path / "train", f"r_{i}", pose, shear=2.0)
    document = json.loads(tiny.train.read_text()) | {"scale": 0.3, "offset": [0.5, 0.45, 0.55]}
    for frame in document["frames"]:
        frame["transform_matrix"] = np.eye(4).tolist()
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    return tmp_path / "transforms.json"


def test_rays_replace_cameras(tiny, ray_scene, device):
    """The cameras of the file show nothing, so what is learnt comes from the rays; two more things change (C.4)."""
    frames = read_scene(tiny.test).frames
    testbed = Testbed(data=ray_scene, config="base_14", device=device, deterministic=True)
    assert testbed.nerf.training.near_distance == 0
    testbed.fit(200, batch_size=8192)
    psnr = evaluate(testbed, frames, load_images(frames)).psnr
    print("PSNR from rays:", psnr)
    assert psnr > 20
    assert not (testbed.density_grid() < 0).any(), "all of the grid is taken to be seen"


def test_rays_can_be_left_out(tiny, ray_scene, small_config, device):
    document = json.loads(ray_scene.read_text()) | {"enable_ray_loading": False}
    ray_scene.write_text(json.dumps(document))
    testbed = Testbed(data=ray_scene, config=small_config, device=device)
    assert testbed.nerf.training.near_distance == pytest.approx(0.1)


# --- HDR -------------------------------------------------------------------------------------------------------------


def test_hdr_images_train_above_one(tiny, device, tmp_path):
    """EXR, premultiplied, eight times as bright: the colours that come back are, too."""
    openexr = pytest.importorskip("OpenEXR")
    (tmp_path / "train").mkdir()
    document = json.loads(tiny.train.read_text())
    for i, image in enumerate(tiny.images):
        alpha = image[..., 3:] / 255.0
        rgba = np.concatenate([8 * linear(image[..., :3] / 255.0) * alpha, alpha], axis=-1)
        header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
        channels = {"RGBA": np.ascontiguousarray(rgba, np.float16)}
        openexr.File(header, channels).write(str(tmp_path / "train" / f"r_{i}.exr"))
        document["frames"][i]["file_path"] = f"train/r_{i}"
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    testbed = Testbed(data=tmp_path, config="base_14", device=device, deterministic=True)
    assert testbed.nerf.training.dataset.is_hdr and testbed.nerf.rgb_activation == NerfActivation.Exponential
    assert testbed.stats()["image_bytes"] == 20 * SIZE * SIZE * 4 * 2, "halves"
    testbed.fit(400, batch_size=8192)
    for i in (0, 7):
        rgb = testbed.render_channels(tiny.poses[i], SIZE, SIZE, intrinsics=INTRINSICS, channels=("rgb",))["rgb"]
        image = tiny.images[i]
        wanted = 8 * linear(image[..., :3] / 255.0) * (image[..., 3:] / 255.0)
        assert wanted.max() > 4
        error = np.abs(rgb - wanted).mean() / wanted.mean()
        clamped = np.abs(np.minimum(wanted, 1) - wanted).mean() / wanted.mean()
        print("HDR: mean error relative to the mean, and of the picture cut off at 1:", error, clamped)
        assert error < 0.6 * clamped
        bright = wanted.max(-1) > 4
        assert np.median(rgb.max(-1)[bright] / wanted.max(-1)[bright]) == pytest.approx(1, abs=0.15)


# --- images one at a time --------------------------------------------------------------------------------------------


def premultiplied(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    alpha = image[..., 3:] / 255.0
    return np.concatenate([linear(image[..., :3] / 255.0) * alpha, alpha], axis=-1).astype(np.float32)


def test_images_one_at_a_time_equal_all_at_once(tiny, six_views, small_config, device):
    """create_empty_nerf_dataset() and set_image() (A.5, A.10), with depths; arrays are copied."""
    cameras, images, depths = six_views
    expected = new(device, small_config)
    floats = [linear(image / 255.0) for image in images]
    for straight, image in zip(floats, images, strict=True):
        straight[..., 3] = image[..., 3] / 255.0
    expected.set_images(floats, cameras, INTRINSICS, depths=depths)
    testbed = new(device, small_config)
    testbed.create_empty_nerf_dataset(6)
    training = testbed.nerf.training
    assert training.n_images_for_training == 0 and training.dataset.n_images == 6
    buffer, depth = np.zeros((SIZE, SIZE, 4), np.float32), np.zeros((SIZE, SIZE), np.float32)
    for i in range(6):
        buffer[:], depth[:] = premultiplied(images[i]), depths[i]
        training.set_image(i, buffer, depth, 0.33)
        training.set_camera_intrinsics(i, FOCAL, cx=SIZE / 2, cy=-0.5)
        training.set_camera_extrinsics(i, cameras[i])
    buffer[:] = depth[:] = 77
    training.n_images_for_training = 6
    losses = []
    for t in (expected, testbed):
        t.nerf.training.depth_supervision_lambda = 0.3
        t.fit(6, batch_size=2048)
        losses.append(t.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    np.testing.assert_allclose(testbed.cameras(), cameras, atol=1e-6)


def test_a_growing_dataset(tiny, small_config, device):
    """Images that are not there are an error; more may come, and others replace them, of other sizes."""
    testbed = new(device, small_config)
    testbed.create_empty_nerf_dataset(3, aabb_scale=2, is_hdr=True)
    assert testbed.nerf.rgb_activation == NerfActivation.Exponential
    training = testbed.nerf.training
    with pytest.raises(RuntimeError, match=r"image 0: has no pixels yet; call nerf.training.set_image\(0"):
        testbed.fit(1, batch_size=512)
    for i in range(2):
        training.set_image(i, premultiplied(tiny.images[i]), None)
        training.set_camera_intrinsics(i, fy=FOCAL)
        training.set_camera_extrinsics(i, tiny.poses[i])
    with pytest.raises(RuntimeError, match="image 2: has no pixels yet"):
        testbed.fit(1, batch_size=512)
    training.n_images_for_training = 2
    testbed.fit(2, batch_size=512)
    training.set_image(2, premultiplied(tiny.images[2])[:20, :30], np.zeros(0))
    training.set_camera_intrinsics(2, FOCAL)
    training.set_camera_extrinsics(2, tiny.poses[2])
    training.n_images_for_training = 3
    testbed.fit(2, batch_size=512)
    assert training.dataset.metadata[2].resolution.tolist() == [30, 20]
    assert testbed.training_step == 4 and np.isfinite(testbed.loss)


def test_a_replaced_image_is_trained_on(tiny, small_config, device):
    losses = []
    for replace in (False, True):
        testbed = new(device, small_config)
        testbed.set_images(tiny.images[:2], tiny.poses[:2], INTRINSICS)
        testbed.fit(2, batch_size=1024)
        if replace:
            testbed.nerf.training.set_image(0, np.full((SIZE, SIZE, 4), 0.5), None)
        testbed.fit(4, batch_size=1024)
        losses.append(testbed.loss)
    assert losses[0] != losses[1]


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda t: t.set_image(2, np.zeros((4, 4, 4)), None), "training image 2 does not exist; there are 2"),
    (lambda t: t.set_image(-1, np.zeros((4, 4, 4)), None), "training image -1 does not exist"),
    (lambda t: t.set_image(0, np.zeros((4, 4, 2)), None), r"set_image\(0\): pixels must have shape"),
    (lambda t: t.set_image(0, np.zeros((4, 4)), None), r"set_image\(0\): pixels must have shape"),
    (lambda t: t.set_image(0, np.full((4, 4, 4), np.nan), None), "img holds values that are not finite"),
    (lambda t: t.set_image(0, np.zeros((4, 4, 4)), np.zeros((4, 5))), "the depth map must be of the image's size, 4x4"),
    (lambda t: t.set_image(0, np.zeros((4, 4, 4)), np.zeros((4, 4)), np.inf), "depth_scale is inf"),
    (lambda t: t.set_image(0, np.zeros((0, 4, 4)), None), "the image is 4x0 pixels"),
    (lambda t: t.set_camera_intrinsics(2, 50), "training image 2 does not exist"),
    (lambda t: t.set_camera_intrinsics(0), "the focal length is"),
    (lambda t: t.set_camera_extrinsics(0, np.zeros((3, 4))), "not a camera pose"),
    (lambda t: t.set_camera_extrinsics(5, np.eye(4)), "training image 5 does not exist"),
]


@pytest.mark.parametrize("call,message", WRONG, ids=[message for _, message in WRONG])
def test_what_set_image_refuses(call, message, tiny):
    testbed = Testbed(device="cpu")
    testbed.set_images(tiny.images[:2], tiny.poses[:2], INTRINSICS)
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(testbed.nerf.training)
    assert testbed.nerf.training.dataset.metadata[0].resolution.tolist() == [SIZE, SIZE]


def test_empty_datasets_are_checked():
    testbed = Testbed(device="cpu")
    with pytest.raises(RuntimeError, match="n_images is 0"):
        testbed.create_empty_nerf_dataset(0)
    with pytest.raises(RuntimeError, match="aabb_scale is 3"):
        testbed.create_empty_nerf_dataset(2, 3)


# --- frames of the input ---------------------------------------------------------------------------------------------


def test_mitsuba_from_end_to_end(tiny, device, tmp_path):
    """Mitsuba's axes (x left, y up, z forward), the scene in [0, 1]: poses, depth and the field come back in them."""
    matrices = np.tile(np.eye(4), (len(tiny.poses), 1, 1))
    matrices[:, :3] = tiny.poses * [-1, 1, -1, 1]
    matrices[:, :3, 3] = 0.5 * tiny.poses[:, :, 3] + 0.5
    document = json.loads(tiny.train.read_text()) | {"from_mitsuba": True}
    for frame, matrix in zip(document["frames"], matrices, strict=True):
        frame["transform_matrix"] = matrix.tolist()
        frame["file_path"] = str(tiny.folder / frame["file_path"])
    (tmp_path / "mitsuba.json").write_text(json.dumps(document))
    testbed = Testbed(data=tmp_path / "mitsuba.json", config="base_14", device=device, deterministic=True)
    assert testbed.nerf.training.dataset.scale == pytest.approx(0.66)
    testbed.fit(200, batch_size=8192)
    np.testing.assert_allclose(testbed.cameras(), matrices[:, :3], atol=1e-5)

    i, alpha = 3, tiny.images[3][..., 3] / 255.0
    rendered = testbed.render_channels(matrices[i, :3], SIZE, SIZE, intrinsics=INTRINSICS)
    wanted = linear(tiny.images[i][..., :3] / 255.0) * alpha[..., None]
    assert -10 * np.log10(np.mean((rendered["rgb"] - wanted) ** 2)) > 23
    depth, solid = 0.5 * true_depth(tiny.poses[i]), (alpha == 1) & (rendered["alpha"] > 0.9)
    assert np.median(np.abs(rendered["depth"] - depth)[solid]) < 0.05  # the subject is 1 across
    origin, directions = pixel_rays(tiny.poses[i], SIZE, SIZE, INTRINSICS, (0.5, 0.5))
    t, normals = trace(origin, directions)[1:]
    agreement = (rendered["normal"] * normals).sum(-1)[solid]
    assert np.median(agreement) > 0.8
    # The field where the pixel's ray meets the surface, seen along the ray.
    points = (0.5 * (origin + np.where(np.isfinite(t), t, 0)[..., None] * directions) + 0.5)[solid]
    inwards = points + 0.01 * directions[solid]
    rgb, density = testbed.query(inwards, directions[solid])
    assert np.median(density) > 10
    assert np.median(np.abs(linear(rgb.astype(np.float64)) - wanted[solid])) < 0.1


@pytest.mark.parametrize("aabb_scale", [16, 128])
def test_large_scene_boxes(aabb_scale, tiny, small_config, device):
    """Images of different sizes, cameras far outside the unit cube, grids of up to eight cascades."""
    images = [image[: SIZE - i, : SIZE - 2 * i] for i, image in enumerate(tiny.images[:6])]
    far = tiny.poses[:6].copy()
    far[:, :, 3] *= 4
    testbed = new(device, small_config)
    testbed.set_images(images, far, INTRINSICS, scale=2.0, offset=(0.5, 0.4, 0.6), aabb_scale=aabb_scale)
    np.testing.assert_allclose(
        [testbed.aabb.min, testbed.aabb.max], [[0.5 - aabb_scale / 2] * 3, [0.5 + aabb_scale / 2] * 3]
    )
    losses: list[float] = []
    testbed.fit(25, batch_size=1024, callback=lambda t: losses.append(t.loss))
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < np.mean(losses[:5])
    np.testing.assert_allclose(testbed.cameras(), far, rtol=1e-5, atol=1e-5)
    assert len(testbed.density_grid()) == (int(np.log2(aabb_scale)) + 1) * 128**3
