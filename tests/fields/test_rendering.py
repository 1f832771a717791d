"""Rendering against compositing by hand, the definitions of the channels, and instant-ngp's render().

A GPU's networks keep activations as halves. Where two ways to the same sample differ by the rounding of its position,
1e-7, each of them may become the next half, 2^-10 of it away. The raw density, a sum of some sixty of them of which
the largest are about as large as itself, at most 8 or so, moves by up to 1e-2 then, and alpha by at most 1/e of that:
the sum of sigma dt times exp(-sum of sigma dt). So tests allow `rounding(device)`, and 50 dB over a picture.
"""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest
from fields.tiny_scene import (
    FOV_X,
    INTRINSICS,
    SIZE,
    SPHERE_CENTRE,
    SPHERE_RADIUS,
    linear,
    pixel_rays,
    srgb,
    trace,
)
from pyngp import BoundingBox, ColorSpace, Lens, LensMode, Testbed, TonemapCurve
from reference.snapshot import decompress

W, H = 12, 10  # of pictures that are composited by hand
VIEW = {"fov_x": FOV_X}


def rounding(device: str, on_cpu: float) -> float:
    """Of colours, alphas and relative weights, where positions are the same but for rounding."""
    return on_cpu if device == "cpu" else 1e-2


def assert_same_picture(got: np.ndarray, wanted: np.ndarray) -> None:
    """50 dB."""
    assert np.sqrt(np.mean((np.asarray(got, np.float64) - wanted) ** 2)) < 10 ** (-50 / 20)


def by_hand(testbed: Testbed, pose: np.ndarray, x: int, y: int) -> dict[str, np.ndarray]:
    """Composites query() at ray_samples(): colour, alpha, expected z, weights and z of the samples."""
    points, direction, dt = testbed.ray_samples(pose, W, H, x, y, **VIEW)
    assert abs(np.linalg.norm(direction) - 1) < 1e-6
    rgb, density = testbed.query(points, np.broadcast_to(direction, points.shape))
    alpha = 1 - np.exp(-density.astype(np.float64) * dt)
    through = np.concatenate([[1.0], np.cumprod(1 - alpha)])
    weights = through[:-1] * alpha
    z = (points - pose[:, 3]) @ -pose[:, 2]
    total = 1 - through[-1]
    return {
        "rgb": linear(weights @ rgb.astype(np.float64)),
        "alpha": total,
        "depth": weights @ z / total if total else np.nan,
        "weights": weights,
        "z": z,
    }


@pytest.fixture
def exact(trained) -> Testbed:
    """The model with rays that are followed to their ends."""
    trained.nerf.render_min_transmittance = 0.0
    return trained


@pytest.fixture
def pose(tiny) -> np.ndarray:
    return tiny.test_poses[1]


def test_query_composited_by_hand_is_the_picture(exact, pose, device):
    rendered = exact.render_channels(pose, W, H, channels=("rgb", "alpha", "depth"), **VIEW)
    atol = rounding(device, 1e-4)
    seen = 0
    alphas = np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            hand = by_hand(exact, pose, x, y)
            alphas[y, x] = hand["alpha"]
            assert rendered["alpha"][y, x] == pytest.approx(hand["alpha"], abs=atol)
            if hand["alpha"] < 1.1e-3:
                continue
            seen += 1
            np.testing.assert_allclose(rendered["rgb"][y, x], hand["rgb"], atol=atol)
            if device == "cpu" or hand["alpha"] > 0.5:  # it is divided by alpha
                assert rendered["depth"][y, x] == pytest.approx(hand["depth"], abs=atol * 3.4)
    assert 30 < seen < W * H
    assert_same_picture(rendered["alpha"], alphas)


def test_samples_are_marched_in_occupied_cells(exact, pose):
    points, direction, dt = exact.ray_samples(pose, W, H, 6, 5, **VIEW)
    assert len(points) > 3 and points.dtype == direction.dtype == dt.dtype == np.float32
    assert (exact.query(points, occupancy=True) > 0).mean() > 0.99  # but for rounding at cell faces
    t = (points - pose[:, 3]) @ direction
    assert (np.diff(t) > 0.99 * dt[:-1]).all()
    np.testing.assert_allclose(dt * 0.33, np.sqrt(3) / 1024, rtol=1e-5)
    _, expected = pixel_rays(pose, W, H, (focal(W), focal(W), W / 2, H / 2), (0.5, 0.5))
    np.testing.assert_allclose(direction, expected[5, 6], atol=1e-6)


def focal(width: int) -> float:
    return 0.5 * width / np.tan(np.radians(FOV_X) / 2)


def test_early_termination_counts_as_opaque(trained, pose):
    """Rays end once less than render_min_transmittance shines through; alpha is 1 there, and elsewhere untouched."""
    trained.nerf.render_min_transmittance = 0.0
    whole = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    trained.nerf.render_min_transmittance = 0.2
    ended = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    solid, open_ = whole["alpha"] > 0.801, whole["alpha"] < 0.799
    assert solid.sum() > 100 and open_.sum() > 100
    assert (ended["alpha"][solid] == 1).all()
    np.testing.assert_allclose(ended["alpha"][open_], whole["alpha"][open_], atol=1e-6)
    np.testing.assert_allclose(ended["rgb"][open_], whole["rgb"][open_], atol=1e-6)


def test_channels(trained, pose):
    """Shapes, types, what empty pixels hold, and agreement with the analytic subject."""
    out = trained.render_channels(pose, SIZE, SIZE, intrinsics=INTRINSICS)
    assert list(out) == ["rgb", "alpha", "depth", "normal"]
    assert {k: v.shape[2:] for k, v in out.items()} == {"rgb": (3,), "alpha": (), "depth": (), "normal": (3,)}
    assert all(v.dtype == np.float32 and v.shape[:2] == (SIZE, SIZE) for v in out.values())
    empty = out["alpha"] < 1e-3
    assert 0.3 < empty.mean() < 0.9
    assert np.isnan(out["depth"][empty]).all() and np.isfinite(out["depth"][~empty]).all()
    assert (out["normal"][empty] == 0).all()
    length = np.linalg.norm(out["normal"][~empty], axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
    assert (out["rgb"] >= 0).all() and (out["rgb"] <= out["alpha"][..., None] + 1e-5).all()

    origin, directions = pixel_rays(pose, SIZE, SIZE, INTRINSICS, (0.5, 0.5))
    rgb, t, _ = trace(origin, directions)
    hit = np.isfinite(t)
    z = t * (directions @ -pose[:, 2])
    solid = hit & (out["alpha"] > 0.95)
    assert solid.sum() > 0.8 * hit.sum()
    assert np.median(np.abs(out["depth"] - z)[solid]) < 0.06
    assert np.median(np.abs(out["rgb"] - rgb)[solid]) < 0.04
    facing = (out["normal"] * directions).sum(-1)[solid] < 0
    assert facing.mean() > 0.8


def test_normals_are_those_of_the_sphere(trained, tiny):
    """Averaged over patches, since a hash grid's own are rough: mostly within 10 degrees of the analytic ones."""
    angles = []
    for pose in tiny.test_poses:
        out = trained.render_channels(pose, SIZE, SIZE, intrinsics=INTRINSICS)
        origin, directions = pixel_rays(pose, SIZE, SIZE, INTRINSICS, (0.5, 0.5))
        _, t, normal = trace(origin, directions)
        points = origin + np.where(np.isfinite(t), t, 0)[..., None] * directions
        on_sphere = np.abs(np.linalg.norm(points - SPHERE_CENTRE, axis=-1) - SPHERE_RADIUS) < 1e-6
        use = on_sphere & np.isfinite(t) & (out["alpha"] > 0.95)
        if use.sum() < 100:
            continue
        for octant in range(8):
            signs = (normal > 0) @ [1, 2, 4] == octant
            if (use & signs).sum() >= 25:
                got, want = (n[use & signs].mean(0) for n in (out["normal"], normal))
                angles.append(got @ want / np.linalg.norm(got) / np.linalg.norm(want))
    assert len(angles) >= 5
    degrees = np.degrees(np.arccos(angles))
    assert np.median(degrees) < 10 and degrees.max() < 30, degrees


def test_a_larger_shifted_world_gives_the_same_picture(trained_snapshot, trained, tiny, device, tmp_path):
    """Doubled and moved: same colours and normals, depth doubled, density halved."""
    shift = np.array([10.0, -4.0, 6.0])
    document = msgpack.unpackb(decompress(trained_snapshot.read_bytes()))
    dataset = document["snapshot"]["nerf"]["dataset"]
    dataset["scale"] /= 2
    dataset["offset"] = (np.array(dataset["offset"]) - dataset["scale"] * shift).tolist()
    path = tmp_path / "moved.msgpack"
    path.write_bytes(msgpack.packb(document))
    moved = Testbed(device=device)
    moved.load_snapshot(path)
    pose = tiny.test_poses[1]
    moved_pose = pose.copy()
    moved_pose[:, 3] = 2 * pose[:, 3] + shift
    one, two = (t.render_channels(p, 24, 24, **VIEW) for t, p in ((trained, pose), (moved, moved_pose)))
    # Rounding of the larger world's coordinates moves rays by about 1e-6, and a few across the edges of cells.
    # Normals: gradients, in which terms of many levels cancel.
    atol = rounding(device, 1e-3)
    for channel, factor in (("rgb", 1), ("alpha", 1), ("depth", 2), ("normal", 1)):
        least = atol * (5 if channel == "normal" and device != "cpu" else 1)
        close = np.isclose(two[channel], factor * one[channel], rtol=1e-3, atol=least, equal_nan=True)
        assert close.mean() > 0.98, channel
    point = SPHERE_CENTRE + np.array([0, -0.9 * SPHERE_RADIUS, 0])
    [a], [b] = trained.query([point]), moved.query([2 * point + shift])
    assert a > 1 and b == pytest.approx(a / 2, rel=1e-2 if device == "cpu" else 5e-2)
    poses, moved_poses = trained.cameras(), moved.cameras()
    np.testing.assert_allclose(poses, tiny.poses, atol=3e-6)
    np.testing.assert_allclose(moved_poses[:, :, 3], 2 * tiny.poses[:, :, 3] + shift, atol=3e-5)
    np.testing.assert_allclose(moved_poses[:, :, :3], tiny.poses[:, :, :3], atol=3e-6)


def test_crop_box(trained, pose):
    """render_aabb, in NGP space, hides what is outside; render_aabb_to_local turns it."""
    whole = trained.render_channels(pose, SIZE, SIZE, **VIEW)["alpha"]
    low, high = SPHERE_CENTRE - 0.6, SPHERE_CENTRE + 0.6
    to_ngp = [1, 2, 0]  # (x, y, z) -> (y, z, x)
    box = BoundingBox(*(p[to_ngp] * 0.33 + 0.5 for p in (low, high)))
    trained.render_aabb = box
    cropped = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    assert 0.1 < cropped["alpha"].sum() / whole.sum() < 0.8
    inside = cropped["alpha"] > 0.5
    origin, directions = pixel_rays(pose, SIZE, SIZE, INTRINSICS, (0.5, 0.5))
    distance = (cropped["depth"] / (directions @ -pose[:, 2]))[inside]
    points = origin + distance[:, None] * directions[inside]
    assert (points > low - 0.02).all() and (points < high + 0.02).all()

    # The same box, seen from axes that are turned by 90 degrees.
    turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
    corners = np.stack([turn @ box.min, turn @ box.max])
    trained.render_aabb = BoundingBox(corners.min(0), corners.max(0))
    trained.render_aabb_to_local = turn
    turned = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    np.testing.assert_allclose(turned["alpha"], cropped["alpha"], atol=2e-2)
    assert np.abs(turned["alpha"] - whole).max() > 0.5


@pytest.mark.parametrize("box", [BoundingBox(), BoundingBox([0.6] * 3, [0.4] * 3)], ids=["never", "inverted"])
def test_empty_crop_box_shows_nothing(box, trained, pose):
    trained.render_aabb = box
    assert (trained.render_channels(pose, 8, 8, **VIEW)["alpha"] == 0).all()


def test_samples_per_pixel_and_snapping(trained, pose):
    """Many samples approach the box-filtered picture; snapped, they all go through the pixel's centre."""
    fine = trained.render_channels(pose, 16 * 8, 16 * 8, **VIEW)["alpha"]
    filtered = fine.reshape(16, 8, 16, 8).mean((1, 3))
    one, many = (trained.render_channels(pose, 16, 16, spp=n, **VIEW)["alpha"] for n in (1, 64))
    trained.snap_to_pixel_centers = True
    snapped = trained.render_channels(pose, 16, 16, spp=64, **VIEW)["alpha"]

    def error(image: np.ndarray, reference: np.ndarray) -> float:
        return float(np.sqrt(np.mean((image - reference) ** 2)))

    assert error(many, filtered) < 0.25 * error(one, filtered)
    assert error(snapped, one) < 0.25 * error(snapped, filtered)
    again = trained.render_channels(pose, 16, 16, spp=64, **VIEW)["alpha"]
    assert np.array_equal(again, snapped)


@pytest.mark.parametrize("mode,params", [("OpenCV", [0.15, -0.05, 0.01, -0.02]), ("OpenCVFisheye", [0.1, 0.02, 0, 0])])
def test_lens(mode, params, trained, pose):
    """A ray's direction, distorted by hand, comes back to its pixel; one picture pixel is such a ray."""
    lens = Lens(LensMode.__members__[mode], params)
    fl, cx, cy = 10.0, 6.5, 4.5
    for x, y in ((0, 0), (6, 4), (11, 9), (2, 7)):
        _, direction, _ = trained.ray_samples(pose, W, H, x, y, intrinsics=(fl, fl, cx, cy), lens=lens)
        right, up, back = direction.astype(np.float64) @ pose[:, :3]
        u, v = right / -back, -up / -back
        r2 = u * u + v * v
        if mode == "OpenCV":
            k1, k2, p1, p2 = params
            radial = 1 + k1 * r2 + k2 * r2 * r2
            du = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
            dv = v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
        else:
            theta = np.arctan(np.sqrt(r2))
            bent = theta * (1 + params[0] * theta**2 + params[1] * theta**4)
            du, dv = (c * bent / np.sqrt(r2) if r2 else c for c in (u, v))
        assert (du * fl + cx, dv * fl + cy) == pytest.approx((x + 0.5, y + 0.5), abs=1e-3)


def view(testbed: Testbed, pose: np.ndarray) -> dict[str, object]:
    """The render camera as VIEW sees it; and its focal length, to the last bit, for render_channels()."""
    testbed.fov_axis = 0
    testbed.fov = FOV_X
    testbed.set_nerf_camera_matrix(pose)
    fl = float(testbed.relative_focal_length[0] * np.float32(W))
    return {"intrinsics": (fl, fl, W / 2, H / 2)}


CURVES = {
    TonemapCurve.Identity: lambda x: x,
    TonemapCurve.ACES: lambda x: (
        (0.36 * 2.51 * x * x + 0.6 * 0.03 * x) / (0.36 * 2.43 * x * x + 0.6 * 0.59 * x + 0.14)
    ),
    TonemapCurve.Hable: lambda x: hable(2 * x) / hable(np.array(11.2)),
    TonemapCurve.Reinhard: lambda x: x / (1 + x @ np.array([0.2126, 0.7152, 0.0722]))[..., None],
}


def hable(x: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = 0.15, 0.5, 0.1, 0.2, 0.02, 0.3
    return (x * (a * x + c * b) + d * e) / (x * (a * x + b) + d * f) - e / f


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
@pytest.mark.parametrize("space", [ColorSpace.Linear, ColorSpace.SRGB], ids=lambda s: s.name)
@pytest.mark.parametrize("background", [(0, 0, 0, 0), (0.2, 0.5, 0.9, 1), (1, 0.3, 0.1, 0.5)], ids=str)
def test_render(background, space, curve, trained, pose):
    """Background, colour space, exposure, tone curve and encoding of render(), from the channels (E.6)."""
    channels = trained.render_channels(pose, W, H, **view(trained, pose))
    rgb, alpha = channels["rgb"].astype(np.float64), channels["alpha"][..., None].astype(np.float64)
    trained.background_color = background
    trained.color_space, trained.tonemap_curve, trained.exposure = space, curve, 0.7
    under, opacity = np.array(background[:3]), background[3] * (1 - alpha)
    if space == ColorSpace.Linear:
        expected = rgb + linear(under) * opacity
    else:
        expected = linear(srgb(rgb) + under * opacity)
    expected = CURVES[curve](expected * 2**0.7)
    for is_linear in (True, False):
        image = trained.render(W, H, 1, is_linear)
        assert image.shape == (H, W, 4) and image.dtype == np.float32
        np.testing.assert_allclose(image[..., 3:], alpha + opacity, atol=1e-5)
        want = expected if is_linear else srgb(expected)
        # 0.41666 rather than 1/2.4 in the encoding is 1.3e-5 of the value.
        np.testing.assert_allclose(image[..., :3], want, atol=2e-4)


def test_render_with_depth(exact, pose, device):
    """z of the sample of largest weight in NGP units; 16384 where alpha <= 0.2."""
    view(exact, pose)
    rgba, depth = exact.render_with_depth(W, H)
    assert np.array_equal(rgba, exact.render(W, H)) and depth.shape == (H, W)
    margin = rounding(device, 1e-3)
    n_hit = 0
    for y in range(H):
        for x in range(W):
            hand = by_hand(exact, pose, x, y)
            if hand["alpha"] <= 0.2 - margin:
                assert depth[y, x] == 16384
            elif hand["alpha"] >= 0.2 + margin:
                n_hit += 1
                strongest = hand["weights"] > hand["weights"].max() * (1 - 2 * margin)
                assert np.abs(hand["z"][strongest] * 0.33 - depth[y, x]).min() < 1e-5
    assert n_hit > 30


def test_training_views_are_cameras(trained, tiny, device):
    for i in (0, 7):
        trained.set_camera_to_training_view(i)
        image = trained.render(SIZE, SIZE)
        channels = trained.render_channels(tiny.poses[i], SIZE, SIZE, intrinsics=INTRINSICS)
        np.testing.assert_allclose(image[..., :3], channels["rgb"], atol=rounding(device, 2e-3))
        assert_same_picture(image[..., :3], channels["rgb"])
        photo = tiny.images[i] / 255.0
        reference = linear(photo[..., :3]) * photo[..., 3:]
        assert np.sqrt(np.mean((image[..., :3] - reference) ** 2)) < 0.1
    for wrong in (-1, 20):
        with pytest.raises(RuntimeError, match=rf"training view {wrong} does not exist; there are 20"):
            trained.set_camera_to_training_view(wrong)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4), (70000, 4)])
def test_impossible_pictures(size, trained, pose):
    for call in (lambda: trained.render(*size), lambda: trained.render_channels(pose, *size, **VIEW)):
        with pytest.raises(
            (RuntimeError, ValueError), match=rf"picture of {size[0]}x{size[1]} pixels can't be rendered"
        ):
            call()
    with pytest.raises(RuntimeError, match="spp is 0"):
        trained.render(4, 4, spp=0)


def test_cameras_far_away_end(python, trained_snapshot: Path, device: str):
    """Where float32 can't resolve a step, marching ends instead of standing still."""
    code = """
import sys, numpy as np
from pyngp import BoundingBox, Testbed
testbed = Testbed(device=sys.argv[2])
testbed.load_snapshot(sys.argv[1])
testbed.render_aabb = BoundingBox([0.3] * 3, [0.7] * 3)
for distance in (1e4, 1.1e5, 1e6, 1e12):
    pose = np.eye(4)[:3]
    pose[2, 3] = distance
    lens = (4 * distance, 4 * distance, 2, 2)
    testbed.ray_samples(pose, 4, 4, 1, 1, intrinsics=lens)
    assert np.isfinite(testbed.render_channels(pose, 4, 4, intrinsics=lens)["rgb"]).all()
"""
    python(code, trained_snapshot, device)


def test_query_outside_and_of_odd_positions(trained):
    positions = np.array([[5.0, 0, 0], [np.nan, 0, 0], [0, np.inf, 0], [0, -0.8, 0.2]])
    rgb, density = trained.query(positions, np.tile([0.0, 1.0, 0.0], (4, 1)))
    assert (density[:3] == 0).all() and density[3] > 0
    assert (rgb[:3] == 0).all() and (rgb[3] > 0).all() and (rgb[3] < 1).all()
    assert trained.query(np.zeros((0, 3))).shape == (0,)
    rgb, density = trained.query(np.zeros((0, 3)), np.zeros((0, 3)))
    assert rgb.shape == (0, 3) and density.shape == (0,)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_query_of_nan(axis, trained):
    """No cell of the grid belongs to NaN, whichever coordinate it is in."""
    points = np.zeros((70, 3), np.float32)
    points[::2, axis] = np.nan
    density = trained.query(points)
    assert np.all(density[::2] == 0) and np.all(np.isfinite(density))


def test_camera_of_nan(trained, pose):
    """Rays that are not finite hit nothing, at once."""
    broken = np.array(pose)
    broken[1, 3] = np.nan
    channels = trained.render_channels(broken, 32, 32, fov_x=40)
    assert np.all(channels["alpha"] == 0) and np.all(np.isnan(channels["depth"]))


def test_near_distance_keeps_depth(trained, pose):
    """Depth counts from the camera, also where rays start in front of it."""
    plain = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    trained.render_near_distance = 0.2
    try:
        moved = trained.render_channels(pose, SIZE, SIZE, **VIEW)
    finally:
        trained.render_near_distance = 0
    solid = (plain["alpha"] > 0.95) & (moved["alpha"] > 0.95)
    assert solid.any()
    assert np.median(np.abs(moved["depth"] - plain["depth"])[solid]) < 0.01
