"""Render modes, ground truth, crop box, lenses, depth of field and motion blur of render() (E.6, A.6).

`rounding` is that of test_rendering.py: what a GPU's halves may move a composited value by.
"""

from __future__ import annotations

import numpy as np
import pytest
from fields.tiny_scene import FOV_X, INTRINSICS, SIZE
from pyngp import GroundTruthRenderMode, Lens, LensMode, RenderMode, Testbed
from reference.color import linear_to_srgb
from reference.nerf_render import field_from_snapshot, unit_vectors
from reference.pose import point_to_ngp
from reference.snapshot import load

W, H = 12, 10
SCALE, OFFSET = 0.33, 0.5


def rounding(device: str, on_cpu: float) -> float:
    return on_cpu if device == "cpu" else 1e-2


@pytest.fixture
def pose(tiny) -> np.ndarray:
    return tiny.test_poses[1]


@pytest.fixture
def shown(trained, pose) -> Testbed:
    """The model with rays that are followed to their ends, on a transparent background, from `pose`."""
    trained.nerf.render_min_transmittance = 0.0
    trained.background_color = [0, 0, 0, 0]
    trained.fov_axis, trained.fov = 0, FOV_X
    trained.set_nerf_camera_matrix(pose)
    return trained


def samples(testbed: Testbed, pose: np.ndarray, x: int, y: int) -> dict[str, np.ndarray]:
    """What a ray composites: NGP positions, z in world units, opacities, weights and colours of its samples."""
    points, direction, dt = testbed.ray_samples(pose, W, H, x, y, fov_x=FOV_X)
    rgb, density = testbed.query(points, np.broadcast_to(direction, points.shape))
    alpha = 1 - np.exp(-density.astype(np.float64) * dt)
    weights = np.concatenate([[1.0], np.cumprod(1 - alpha)])[:-1] * alpha
    return {
        "p": point_to_ngp(points, SCALE, OFFSET),
        "z": (points - pose[:, 3]) @ -pose[:, 2],
        "alpha": alpha,
        "weights": weights,
        "rgb": rgb.astype(np.float64),
        "direction": direction,
    }


def picture_by_hand(testbed: Testbed, pose: np.ndarray, value) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) sum of weight * value(samples), and alpha; pixels with alpha <= 0.001 are empty."""
    rgb, alpha = np.zeros((H, W, 3)), np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            s = samples(testbed, pose, x, y)
            alpha[y, x] = s["weights"].sum()
            if alpha[y, x] > 1e-3:
                rgb[y, x] = s["weights"] @ np.broadcast_to(value(s), (len(s["z"]), 3))
    assert 0.2 < (alpha > 0.5).mean() < 0.8
    return rgb, np.where(alpha > 1e-3, alpha, 0)


VALUES = {
    "AO": lambda s: s["alpha"][:, None],
    "Positions": lambda s: (s["p"] - 0.5) / 2 + 0.5,
    "Depth": lambda s: s["z"][:, None],
}


@pytest.mark.parametrize("mode", VALUES)
def test_values_of_samples(mode, shown, pose, device):
    """Composited like colours, and not decoded from sRGB."""
    rgb, alpha = picture_by_hand(shown, pose, VALUES[mode])
    shown.render_mode = RenderMode.__members__[mode]
    image = shown.render(W, H)
    largest = 4.5 if mode == "Depth" else 1
    np.testing.assert_allclose(image[..., 3], alpha, atol=rounding(device, 1e-4))
    np.testing.assert_allclose(image[..., :3], rgb, atol=largest * rounding(device, 1e-4))


def test_cost_counts_samples(shown, pose):
    counts = np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            s = samples(shown, pose, x, y)
            counts[y, x] = len(s["z"]) if s["weights"].sum() > 1e-3 else 0
    shown.render_mode = RenderMode.Cost
    image = shown.render(W, H)
    near_threshold = (np.abs(image[..., 0] * 128 - counts) > 0.5).sum()
    assert near_threshold <= 1 and counts.max() > 10
    np.testing.assert_array_equal(image[..., 3], (image[..., 0] > 0).astype(np.float32))


def test_normals_are_unit_density_gradients(shown, pose, trained_snapshot, device):
    """The twin's gradient of the whole encoding, made unit for each sample and again for the ray.

    A position that rounds into the next cell of some level gets that cell's gradient: one pixel in ten may be off.
    """
    field = field_from_snapshot(load(trained_snapshot))
    normals, alpha = picture_by_hand(shown, pose, lambda s: unit_vectors(-field.raw_density_gradient(s["p"])))
    shown.render_mode = RenderMode.Normals
    image = shown.render(W, H).astype(np.float64)
    solid = alpha > 0.5
    got = 2 * image[solid][:, :3] / image[solid][:, 3:] - 1
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    error = np.linalg.norm(got - unit_vectors(normals[solid]), axis=1)
    assert np.quantile(error, 0.9) < (1e-3 if device == "cpu" else 0.1), error
    assert (image[alpha == 0] == 0).all()


@pytest.mark.parametrize("mode", ["Depth", "Positions"])
def test_hard_edges(mode, shown, device):
    """The value at the sample of largest weight, which is the one that render_with_depth() gives."""
    _, depth = shown.render_with_depth(SIZE, SIZE)
    shown.render_mode = RenderMode.__members__[mode]
    shown.nerf.render_gbuffer_hard_edges = True
    image = shown.render(SIZE, SIZE).astype(np.float64)
    seen = image[..., 3] > 0.21
    value = image[seen][:, :3] / image[seen][:, 3:]
    if mode == "Depth":
        np.testing.assert_allclose(value, np.repeat(depth[seen][:, None], 3, axis=1) / SCALE, rtol=1e-5)
    else:
        m = shown.camera_matrix
        z = (4 * (value - 0.25) / 2 - m[:, 3]) @ m[:, 2]
        np.testing.assert_allclose(z, depth[seen], atol=1e-5)


def test_slice_is_the_field_on_a_plane(shown, pose, device):
    """Opacity of 0.01 NGP units, and nothing outside of the crop box."""
    shown.render_mode = RenderMode.Slice
    shown.slice_plane_z = 1.1 - shown.scale
    image, depth = shown.render_with_depth(SIZE, SIZE)
    focal = 0.5 / np.tan(np.radians(FOV_X) / 2)
    uv = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) / focal
    m = shown.camera_matrix.astype(np.float64)
    x, y = np.meshgrid(uv, uv)
    plane = np.stack([x, y, np.ones_like(x)], axis=-1) * 1.1
    ngp = plane @ m[:, :3].T + m[:, 3]
    world = (ngp[..., [2, 0, 1]] - OFFSET) / SCALE
    directions = (world - pose[:, 3]) / np.linalg.norm(world - pose[:, 3], axis=-1, keepdims=True)
    rgb, density = shown.query(world.reshape(-1, 3), directions.reshape(-1, 3))
    alpha = (1 - np.exp(-density / SCALE * 0.01)).reshape(SIZE, SIZE)
    assert 0.02 < (alpha > 0.5).mean() < 0.5
    # Positions differ by rounding, 1e-7, in which the density of a trained grid moves by 1e-3 at most.
    atol = rounding(device, 2e-3)
    np.testing.assert_allclose(image[..., 3], np.where(alpha > 1e-3, alpha, 0), atol=atol)
    encoded = linear_to_srgb(image[..., :3].astype(np.float64))
    np.testing.assert_allclose(encoded, rgb.reshape(SIZE, SIZE, 3) * alpha[..., None], atol=max(atol, 1e-2))
    assert set(np.unique(depth)) <= {np.float32(1.1), np.float32(16384)}
    shown.render_aabb.max = [0.5, 1, 1]
    cut = shown.render(SIZE, SIZE)
    np.testing.assert_array_equal(cut[..., 3] > 0, (image[..., 3] > 0) & (ngp[..., 0] <= 0.5))


def test_visualized_activations(shown, pose, device):
    """The rgb network's output is the logit of its colours; orange above zero, blue below."""
    n_layers = 5  # base_14: two matrices, three matrices, output
    shown.visualized_dimension, shown.visualized_layer = 0, n_layers
    values, _ = picture_by_hand(shown, pose, lambda s: np.log(s["rgb"][:, :1] / (1 - s["rgb"][:, :1])))
    v = values[..., 0] / (1 + np.abs(values[..., 0]))
    wanted = np.stack([np.maximum(v, 0), np.abs(v) / 2, np.maximum(-v, 0)], axis=-1)
    # On a GPU, the networks that show activations keep them as floats, those that queries ask as halves: opacities are
    # off by `rounding`, and so are logits.
    np.testing.assert_allclose(shown.render(W, H)[..., :3], wanted, atol=1e-3 if device == "cpu" else 2e-2)
    for layer, dimension, message in ((6, 0, "layers are 0 to 5"), (0, 32, "dimensions 0 to 31"), (-1, 0, "layers")):
        shown.visualized_layer, shown.visualized_dimension = layer, dimension
        with pytest.raises(RuntimeError, match=message):
            shown.render(W, H)


def test_distortion_shows_what_the_lens_does(shown):
    shown.render_mode = RenderMode.Distortion
    # Of 1 to 8 roundings, 2^-24 each, 64 times.
    np.testing.assert_allclose(shown.render(W, H), np.broadcast_to([0, 0, 0, 1], (H, W, 4)), atol=64 * 8 * 2.0**-24)
    shown.render_lens = Lens(LensMode.OpenCV, [0.01])
    image = shown.render(60, 40)
    focal = 60 * shown.relative_focal_length[0]
    x, y = np.meshgrid(np.arange(60) + 0.5 - 30, np.arange(40) + 0.5 - 20)
    r = np.hypot(x, y) / focal
    moved = -0.01 * r**2 * (1 - 3 * 0.01 * r**2)  # of the distance, to second order
    size = 64 * np.abs(moved) * np.hypot(x / 60, y / 40)
    np.testing.assert_allclose(image[..., :3].max(axis=-1), size, atol=2e-3 * size.max())
    assert image[20, 59, 0] < 0.1 * image[20, 59, 1:].max()  # towards the centre: cyan at the right edge
    assert (image[..., 3] == 1).all()


def test_checkerboard_shows_through(shown):
    plain = shown.render(SIZE, SIZE)
    shown.render_transparency_as_checkerboard = True
    image = shown.render(SIZE, SIZE)
    assert (image[..., 3] == 1).all()
    squares = (np.add.outer(np.arange(SIZE) // 16, np.arange(SIZE) // 16) % 2)[..., None]
    grey = ((np.where(squares, 0.6, 0.4) + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(image[..., :3], plain[..., :3] + grey * (1 - plain[..., 3:]), atol=1e-6)
    shown.background_color = [0.2, 0.2, 0.2, 1]
    assert (shown.render(SIZE, SIZE) == shown.render(SIZE, SIZE)).all()
    shown.render_transparency_as_checkerboard = False
    opaque = shown.render(SIZE, SIZE)
    shown.render_transparency_as_checkerboard = True
    np.testing.assert_allclose(shown.render(SIZE, SIZE), opaque, atol=1e-6)


# --- ground truth


@pytest.fixture
def with_images(tiny, device) -> Testbed:
    return Testbed(data=tiny.train, config="base_14", device=device)


def straight_to_linear(image: np.ndarray) -> np.ndarray:
    c, a = image[..., :3] / 255, image[..., 3:] / 255
    return np.concatenate([np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) * a, a], axis=-1)


def test_ground_truth_is_the_training_image(with_images, tiny):
    t = with_images
    t.render_ground_truth, t.background_color = True, [0, 0, 0, 0]
    for view in (0, 7, 19):
        t.set_camera_to_training_view(view)
        wanted = straight_to_linear(tiny.images[view])
        image, depth = t.render_with_depth(SIZE, SIZE)
        np.testing.assert_allclose(image, wanted, atol=1e-6)
        assert (depth == 0).all()
    # The nearest pixel, at half size: (2 i + 1, 2 j + 1) lies at the corner of four, and counts as the last.
    np.testing.assert_allclose(t.render(SIZE // 2, SIZE // 2), wanted[1::2, 1::2], atol=1e-6)
    # Scaled along fov_axis, and centred; nothing beside it.
    t.fov_axis = 1
    wide = t.render(SIZE + 20, SIZE)
    np.testing.assert_allclose(wide[:, 10:-10], wanted, atol=1e-6)
    assert (wide[:, :10] == 0).all() and (wide[:, -10:] == 0).all()
    t.zoom = 2
    zoomed = t.render(SIZE, SIZE)
    np.testing.assert_allclose(zoomed, wanted[np.ix_(*[np.arange(SIZE) // 2 + SIZE // 4] * 2)], atol=1e-6)


def test_ground_truth_on_a_background(with_images, tiny):
    t = with_images
    t.set_camera_to_training_view(3)
    t.render_groundtruth = True
    t.background_color, t.exposure = [1, 0.5, 0, 1], 1
    wanted = straight_to_linear(tiny.images[3])
    background = np.array([1, 0.21404114, 0])
    expected = 2 * (wanted[..., :3] + (1 - wanted[..., 3:]) * background)
    np.testing.assert_allclose(t.render(SIZE, SIZE)[..., :3], expected, atol=1e-5)
    t.exposure, t.color_space = 0, type(t.color_space).SRGB
    c, a = tiny.images[3][..., :3] / 255, tiny.images[3][..., 3:] / 255
    np.testing.assert_allclose(t.render(SIZE, SIZE, 1, False)[..., :3], c * a + (1 - a) * [1, 0.5, 0], atol=1e-4)


def test_depth_maps_as_ground_truth(tiny):
    """In world units, where they are known."""
    depths = np.zeros((1, SIZE, SIZE), np.float32)
    depths[0, : SIZE // 2] = 1.25
    t = Testbed(device="cpu")
    t.set_images(tiny.images[:1], tiny.poses[:1], INTRINSICS, depths=depths)
    t.set_camera_to_training_view(0)
    t.render_ground_truth, t.groundtruth_render_mode = True, GroundTruthRenderMode.Depth
    t.background_color = [0, 0, 0, 0]
    seen = t.render(SIZE, SIZE)
    np.testing.assert_allclose(
        seen[: SIZE // 2], np.broadcast_to([1.25, 1.25, 1.25, 1.0], (SIZE // 2, SIZE, 4)), rtol=1e-5
    )
    assert (seen[SIZE // 2 :] == 0).all()


def test_ground_truth_that_is_not_there(with_images, trained):
    with_images.render_ground_truth = True
    with_images.groundtruth_render_mode = GroundTruthRenderMode.Depth
    with pytest.raises(RuntimeError, match="no depth map"):
        with_images.render(W, H)
    trained.render_ground_truth = True
    with pytest.raises(RuntimeError, match="no training images"):
        trained.render(W, H)


# --- crop box


def test_crop_box_with_rotation(shown, pose):
    """Rays are sampled within the box that was set, in world units."""
    angle = 0.6
    axes = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    half = np.array([0.5, 0.8, 0.4])
    matrix = np.column_stack([axes * half, [0.1, -0.2, 0.1]])
    shown.set_crop_box(matrix)
    np.testing.assert_allclose(shown.crop_box(), matrix, atol=1e-6)
    corners = np.array(shown.crop_box_corners())
    assert corners.shape == (8, 3)
    local = (corners - matrix[:, 3]) @ axes / half
    np.testing.assert_allclose(np.abs(local), 1, atol=1e-5)
    assert len(np.unique(np.round(local), axis=0)) == 8
    n = 0
    for x in range(W):
        points, _, _ = shown.ray_samples(pose, W, H, x, 5, fov_x=FOV_X)
        n += len(points)
        assert (np.abs((points - matrix[:, 3]) @ axes) <= half + 1e-5).all()
    assert n > 20
    box = shown.crop_box(nerf_space=False)
    shown.set_crop_box(box, nerf_space=False)
    np.testing.assert_allclose(shown.crop_box(), matrix, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(box[:, :3], axis=0), half * SCALE, atol=1e-6)


def test_crop_boxes_must_be_boxes(shown):
    for columns in (np.zeros((3, 3)), [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]], np.full((3, 3), np.nan)):
        with pytest.raises(RuntimeError, match="half axes"):
            shown.set_crop_box(np.column_stack([columns, np.zeros(3)]))


# --- lenses


def test_render_stays_perspective_unless_a_lens_is_set(shown, pose, tiny):
    """What a training view leaves in render_lens changes nothing (B3); what a script sets does."""
    lens = Lens(LensMode.OpenCV, [-0.2, 0.05])
    for view in shown.nerf.training.dataset.metadata:
        view.lens = lens
    shown.set_camera_to_training_view(2)
    plain = shown.render(SIZE, SIZE)
    assert shown.render_lens.mode == LensMode.OpenCV and shown.render_with_lens_distortion
    channels = {"intrinsics": None, "fov_x": FOV_X, "channels": ("rgb",)}
    perspective = shown.render_channels(tiny.poses[2], SIZE, SIZE, **channels)["rgb"]
    distorted = shown.render_channels(tiny.poses[2], SIZE, SIZE, lens=lens, **channels)["rgb"]
    assert np.abs(perspective - distorted).max() > 0.1
    np.testing.assert_allclose(plain[..., :3], perspective, atol=2e-2)
    shown.render_lens = lens
    np.testing.assert_allclose(shown.render(SIZE, SIZE)[..., :3], distorted, atol=2e-2)
    shown.render_with_lens_distortion = False
    np.testing.assert_array_equal(shown.render(SIZE, SIZE), plain)
    shown.set_camera_to_training_view(2)
    np.testing.assert_array_equal(shown.render(SIZE, SIZE), plain)
    shown.render_lens.mode = LensMode.OpenCVFisheye  # of the live object
    assert np.abs(shown.render(SIZE, SIZE) - plain).max() > 0.05


def test_parallax_shift(shown):
    """x and y move the eye; what lies at distance 1/z in front of it stays where it is in the picture."""
    shown.parallax_shift = [0.05, -0.03, 0]
    moved = shown.render(SIZE, SIZE)
    m = shown.camera_matrix
    shown.parallax_shift = [0, 0, 0]
    shown.camera_matrix = np.column_stack([m[:, :3], m @ [0.05, -0.03, 0, 1]])
    np.testing.assert_allclose(moved, shown.render(SIZE, SIZE), atol=2e-2)
    shown.camera_matrix = m
    shown.parallax_shift = [0.05, -0.03, 1 / 1.1]
    shown.render_mode, shown.slice_plane_z = RenderMode.Slice, 1.1 - shown.scale
    shifted = shown.render(SIZE, SIZE)[..., 3]
    shown.parallax_shift = [0, 0, 0]
    np.testing.assert_allclose(shifted, shown.render(SIZE, SIZE)[..., 3], atol=2e-2)
    shown.parallax_shift, shown.render_lens = [0.1, 0, 0], Lens(LensMode.LatLong)
    with pytest.raises(RuntimeError, match="perspective"):
        shown.render(W, H)


# --- depth of field and motion blur


def sharpness(image: np.ndarray) -> float:
    return float((np.diff(image[..., 3], axis=0) ** 2).sum() + (np.diff(image[..., 3], axis=1) ** 2).sum())


def test_depth_of_field(shown, device):
    shown.snap_to_pixel_centers = True
    pinhole = shown.render(SIZE, SIZE, 16)
    shown.aperture_size = 1e-7
    shown.slice_plane_z = 1.1 - shown.scale
    np.testing.assert_allclose(shown.render(SIZE, SIZE, 16), pinhole, atol=rounding(device, 1e-3))
    shown.aperture_size = 0.05
    assert shown.dof == shown.aperture_size
    focused = shown.render(SIZE, SIZE, 16)
    shown.slice_plane_z = 0.4 - shown.scale
    blurred = shown.render(SIZE, SIZE, 16)
    assert sharpness(blurred) < 0.5 * sharpness(focused) < 0.5 * 1.01 * sharpness(pinhole)
    # Blur moves light about, and makes none.
    assert blurred[..., 3].mean() == pytest.approx(pinhole[..., 3].mean(), rel=0.02)
    shown.autofocus, shown.autofocus_target = True, [0.5, 0.5, 0.5]
    shown.render(W, H)
    m = shown.camera_matrix
    assert shown.slice_plane_z + shown.scale == pytest.approx((0.5 - m[:, 3]) @ m[:, 2], abs=1e-5)
    shown.autofocus, shown.slice_plane_z = False, -shown.scale
    with pytest.raises(RuntimeError, match="focus distance"):
        shown.render(W, H)


def test_motion_blur_is_the_mean_over_time(shown, pose):
    """Along a path of two keyframes, from the first on for half the way to the second.

    A pixel's 64 times are stratified, so that an edge that crosses it is off by 1/64 at most; so are the 64 pictures.
    """
    t = shown
    t.snap_to_pixel_centers = True
    t.camera_path.spline_order = 1
    other = np.column_stack([pose[:, :3], pose[:, 3] + 0.4 * pose[:, 0]])
    for p in (pose, other):
        t.set_nerf_camera_matrix(p)
        t.camera_path.add_camera(t.camera_matrix, 0, t.scale, t.fov, 0, 1, 0)
    blurred = t.render(SIZE, SIZE, 64, True, 0.0, 1.0, 30, 0.5)
    still = [t.render(SIZE, SIZE, 1, True, (k + 0.5) / 128) for k in range(64)]
    assert np.abs(still[0] - still[-1]).max() > 0.5
    assert np.abs(blurred - np.mean(still, axis=0)).max() < 2.5 / 64
    assert np.abs(blurred - still[32]).max() > 0.2
    np.testing.assert_array_equal(t.render(W, H, 1, True, 0.25, 0.75, 30, 0.0), t.render(W, H, 1, True, 0.25))


def test_modes_have_the_same_bytes_on_any_number_of_threads(tiny, snapshot_of, python):
    code = """
import sys, hashlib, numpy as np, pyngp
t = pyngp.Testbed(device="cpu")
t.load_snapshot(sys.argv[1])
t.set_camera_to_training_view(0)
t.camera_path.add_camera(t.camera_matrix, 0, 1.0, t.fov, 0.02, 1, 0)
t.next_training_view()
t.camera_path.add_camera(t.camera_matrix, 0, 1.0, t.fov, 0.02, 1, 0)
digest = hashlib.sha256()
for mode in pyngp.RenderMode.__members__.values():
    t.render_mode = mode
    digest.update(t.render(40, 30, 3, True, 0.2, 0.3).tobytes())
print(digest.hexdigest())
"""
    digests = {python(code, snapshot_of("cpu"), env={"PYNGP_NUM_THREADS": str(n)}).stdout for n in (1, 3)}
    assert len(digests) == 1
