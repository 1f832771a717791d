"""Files beside training images: alpha, masks, depth, rays; EXR; keys of transforms.json about images (C.2 to C.4)."""

from __future__ import annotations

import json
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyngp import Testbed
from pyngp.dataset import DatasetWarning, load_images, read_scene
from pyngp.evaluation import on_black
from pyngp.exr import read_exr
from pyngp.frame_images import ImageFiles, LoadedImage, load_image, sharpened
from pyngp.images import read_image, srgb_to_linear
from reference.color import srgb_to_linear as to_linear

W, H = 12, 8
POSE = [[1.0, 0, 0, 0.1], [0, 1, 0, 0.2], [0, 0, 1, 3], [0, 0, 0, 1]]
RANDOM = np.random.default_rng(3)
RGB = RANDOM.integers(1, 255, (H, W, 3), np.uint8)  # neither white nor black
RGBA = np.dstack([RGB, RANDOM.integers(1, 256, (H, W), np.uint8)])


def load(path: Path) -> LoadedImage:
    return load_image(ImageFiles.of(path, path))


def write_scene(folder: Path, names: Sequence[str] = ("a.png",), name: str = "transforms.json", **keys: Any) -> Path:
    frames = [{"file_path": n, "transform_matrix": POSE} for n in names]
    if "depth_path" in keys:
        frames[0]["depth_path"] = keys.pop("depth_path")
    (folder / name).write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames, **keys}))
    return folder / name


def loaded(path: Path) -> list[LoadedImage]:
    return [load_image(frame.image_files) for frame in read_scene(path).frames]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGBA).save(tmp_path / "b.png")
    return tmp_path


# --- alpha, transparent colours, masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["a.png", "a"])
def test_alpha_files(written, folder):
    """Named after the path as it is written; linear light of their red channel."""
    alpha = RANDOM.integers(0, 256, (H, W, 3), np.uint8)
    Image.fromarray(alpha).save(folder / f"{written}.alpha.png")
    [image] = loaded(write_scene(folder, [written]))
    assert np.array_equal(image.pixels[..., :3], RGB)
    wanted = 255 * to_linear(alpha[..., 0] / 255.0)
    assert np.abs(image.pixels[..., 3] - wanted).max() <= 0.5 + 1e-4
    # It replaces alpha that is there.
    Image.fromarray(alpha).save(folder / "b.png.alpha.png")
    assert np.array_equal(load(folder / "b.png").pixels[..., 3], image.pixels[..., 3])


def test_transparent_colours(folder):
    """Exactly white, or black, becomes transparent; the colour itself stays."""
    for name, pixels in (("a", RGB.copy()), ("b", RGBA.copy())):
        pixels[1, 2, :3], pixels[3, 4, :3], pixels[5, 6, :3] = 255, 0, (255, 255, 254)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        for keys, clear in (
            ({"white_transparent": True}, [(1, 2)]),
            ({"black_transparent": True}, [(3, 4)]),
            ({"white_transparent": True, "black_transparent": True}, [(1, 2), (3, 4)]),
            ({"white_transparent": False}, []),
        ):
            [image] = loaded(write_scene(folder, [f"{name}.png"], **keys))
            expected = np.dstack([pixels[..., :3], pixels[..., 3] if name == "b" else np.full((H, W), 255, np.uint8)])
            for at in clear:
                expected[(*at, 3)] = 0
            got = image.pixels
            assert np.array_equal(got[..., :3], expected[..., :3])
            if clear or name == "b":
                assert np.array_equal(got, expected)


def test_transparent_colours_stay_for_later_files(folder):
    """Sticky across files (C.2), in their order by name."""
    white = np.full((H, W, 3), 255, np.uint8)
    for name in "xyz":
        Image.fromarray(white).save(folder / f"{name}.png")
    write_scene(folder, ["x.png"], "1.json")
    write_scene(folder, ["y.png"], "2.json", white_transparent=True)
    write_scene(folder, ["z.png"], "3.json", white_transparent=False)
    assert [image.pixels.shape[2] for image in loaded(folder)] == [3, 4, 4]


def test_masks(folder):
    """dynamic_mask_<stem>.png: any channel; an image without a file has none."""
    mask = np.zeros((H, W, 3), np.uint8)
    mask[1, 2, 0], mask[3, 4, 1], mask[5, 6, 2] = 1, 255, 7
    expected = (mask != 0).any(-1)
    Image.fromarray(mask).save(folder / "dynamic_mask_a.png")
    a, b = loaded(write_scene(folder, ["a.png", "b.png"]))
    assert a.mask is not None and np.array_equal(a.mask, expected) and np.array_equal(a.pixels, RGB)
    assert b.mask is None
    Image.fromarray(mask[..., 0]).save(folder / "dynamic_mask_a.png")  # grey
    assert np.array_equal(load(folder / "a.png").mask, mask[..., 0] != 0)


def test_masked_colour(folder):
    """A pixel of (255, 0, 255, 0) is masked, also beside a mask file (C.4)."""
    pixels = RGBA.copy()
    pixels[2, 3] = pixels[4, 5] = (255, 0, 255, 0)
    pixels[6, 7] = (255, 0, 255, 1)
    Image.fromarray(pixels).save(folder / "b.png")
    assert np.argwhere(load(folder / "b.png").mask).tolist() == [[2, 3], [4, 5]]
    mask = np.zeros((H, W), np.uint8)
    mask[0, 0] = 1
    Image.fromarray(mask).save(folder / "dynamic_mask_b.png")
    assert np.argwhere(load(folder / "b.png").mask).tolist() == [[0, 0], [2, 3], [4, 5]]


# --- 16 bits ---------------------------------------------------------------------------------------------------------


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit channels, which Pillow can't write in colour."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_keeps_the_upper_bits(channels, tmp_path):
    deep = RANDOM.integers(0, 65536, (H, W, channels), np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(deep))
    got = read_image(tmp_path / "deep.png")
    expected = np.uint8(deep >> 8)
    assert got.dtype == np.uint8
    assert np.array_equal(got, np.repeat(expected, 3, 2) if channels == 1 else expected)


# --- EXR -------------------------------------------------------------------------------------------------------------


def write_exr(path: Path, **channels: np.ndarray) -> None:
    openexr = pytest.importorskip("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    openexr.File(header, {k: np.ascontiguousarray(v) for k, v in channels.items()}).write(str(path))


HDR = (10 ** RANDOM.uniform(-3, 3, (H, W, 4))).astype(np.float16)
HDR[..., 3] = RANDOM.uniform(0, 1, (H, W))


def test_exr(folder):
    """Halves stay halves, premultiplied; the extension is found; the data set is HDR."""
    write_exr(folder / "x.exr", R=HDR[..., 0], G=HDR[..., 1], B=HDR[..., 2], A=HDR[..., 3])
    path = write_scene(folder, ["x"])
    [image] = loaded(path)
    assert image.pixels.dtype == np.float16 and np.array_equal(image.pixels, HDR)
    assert image.is_hdr and image.premultiplied
    testbed = Testbed(data=path, device="cpu")
    assert testbed.nerf.training.dataset.is_hdr
    assert not Testbed(data=write_scene(folder), device="cpu").nerf.training.dataset.is_hdr


def test_exr_of_floats(folder):
    """As halves where those hold the values; else as they are, where instant-ngp's halves would be infinite."""
    floats = HDR.astype(np.float32)
    write_exr(folder / "x.exr", RGB=floats[..., :3])
    got = read_exr(folder / "x.exr")
    assert got.dtype == np.float16 and np.array_equal(got, HDR[..., :3])
    floats[0, 0, 0] = 1e6
    write_exr(folder / "x.exr", RGBA=floats)
    got = read_exr(folder / "x.exr")
    assert got.dtype == np.float32 and np.array_equal(got, floats)


def test_grey_exr(folder):
    write_exr(folder / "x.exr", Y=HDR[..., 0])
    assert np.array_equal(read_exr(folder / "x.exr"), np.repeat(HDR[..., :1], 3, 2))


def test_fix_premult(folder):
    """The file's colours are straight: read as such, which multiplies them by alpha."""
    write_exr(folder / "x.exr", RGBA=HDR)
    [image] = loaded(write_scene(folder, ["x.exr"], fix_premult=True))
    assert not image.premultiplied and np.array_equal(image.pixels, HDR)
    wide = HDR.astype(np.float64)
    expected = {True: wide[..., :3], False: wide[..., :3] * wide[..., 3:]}
    for premultiplied, linear in expected.items():
        reference = on_black(image.pixels, premultiplied)
        np.testing.assert_allclose(srgb_to_linear(reference), linear, rtol=2e-3, atol=1e-6)


def test_exr_with_a_mask(folder):
    write_exr(folder / "x.exr", RGB=HDR[..., :3])
    Image.fromarray(np.eye(H, W, dtype=np.uint8)).save(folder / "dynamic_mask_x.png")
    assert np.array_equal(load(folder / "x.exr").mask, np.eye(H, W, dtype=bool))


def test_the_shared_exr(data):
    pytest.importorskip("OpenEXR")
    pixels = read_exr(data / "albert.exr")
    assert pixels.shape[:2] == (1024, 1024) and pixels.dtype == np.float16 and np.isfinite(pixels).all()


def test_exr_without_the_extra(folder, monkeypatch):
    (folder / "x.exr").write_bytes(b"v/1\x01")
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(RuntimeError, match=r"x.exr: EXR images need OpenEXR: pip install 'pyngp\[exr\]'"):
        Testbed(data=write_scene(folder, ["x.exr"]), device="cpu")


def test_broken_exr(folder):
    pytest.importorskip("OpenEXR")
    path = folder / "x.exr"
    write_exr(path, RGBA=HDR)
    content = path.read_bytes()
    for broken in (b"", b"no image", content[:40], content[: len(content) // 2], content[:-9]):
        path.write_bytes(broken)
        with pytest.raises(RuntimeError, match=r"x.exr: cannot be read as an OpenEXR image: \S") as raised:
            load(path)
        assert "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(RuntimeError, match=r"x.exr: no such image file"):
        load(path)


ODD_EXR = [
    ({"R": HDR[..., 0], "G": HDR[..., 1]}, "has no channels R, G and B, nor Y; its channels are G, R"),
    ({"diffuse.R": HDR[..., 0]}, "its channels are diffuse.R"),
    ({"R": HDR[..., 0], "G": HDR[..., 1], "B": HDR[..., 2].astype(np.float32)}, "must have the same type"),
    ({"RGB": np.ones((H, W, 3), np.uint32)}, "its channels are uint32; they must be half or float"),
    ({"RGB": np.full((H, W, 3), np.nan, np.float32)}, "holds values that are not finite"),
    ({"RGB": np.full((H, W, 3), np.inf, np.float16)}, "holds values that are not finite"),
]


@pytest.mark.parametrize("channels,message", ODD_EXR, ids=[message for _, message in ODD_EXR])
def test_odd_exr(channels, message, folder):
    write_exr(folder / "x.exr", **channels)
    with pytest.raises(RuntimeError, match=rf"x.exr: .*{message}"):
        read_exr(folder / "x.exr")


def test_radiance_files_say_what_to_do(folder):
    (folder / "x.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\0\0\0\0")
    with pytest.raises(RuntimeError, match=r"x.hdr: Radiance images .* convert it to OpenEXR"):
        Testbed(data=write_scene(folder, ["x.hdr"]), device="cpu")


# --- sharpening ------------------------------------------------------------------------------------------------------


def direct_sharpening(rgba: np.ndarray, amount: float, mask: np.ndarray | None = None) -> np.ndarray:
    """C.4 pixel by pixel in float64: (4 + 1/a) * centre minus four neighbours, times a, at least 0."""
    height, width = rgba.shape[:2]
    flat, out = rgba.reshape(-1, 4), np.zeros((height * width, 4))
    for i in range(len(flat)):
        total = (4 + 1 / amount) * flat[i]
        for j in (i - 1, i + 1, i - width, i + width):
            usable = 0 <= j < len(flat) and not (mask is not None and mask.flat[j])
            total = total - flat[j if usable else i]
        out[i] = np.maximum(amount * total, 0)
    out[:, 3] = np.minimum(out[:, 3], 1)
    return out.reshape(height, width, 4)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "half", "straight half"])
@pytest.mark.parametrize("masked", [False, True])
def test_sharpening(kind, masked):
    pixels = {"rgb": RGB, "rgba": RGBA, "half": HDR, "straight half": HDR}[kind]
    wide = pixels.astype(np.float64)
    if pixels.dtype == np.uint8:
        wide = np.dstack([to_linear(wide[..., :3] / 255), wide[..., 3:] / 255])
    rgb, alpha = wide[..., :3], wide[..., 3:] if wide.shape[2] == 4 else np.ones((H, W, 1))
    rgba = np.concatenate([rgb if kind in ("rgb", "half") else rgb * alpha, alpha], axis=-1)
    mask = np.random.default_rng(9).random((H, W)) < 0.3 if masked else None
    image = LoadedImage(pixels, premultiplied=kind == "half", mask=mask)
    expected = direct_sharpening(rgba, 0.7, mask)
    got = sharpened(image, 0.7).astype(np.float64)
    # Half a unit of a half's last place, and float32 sums of terms up to 3.8 times the largest value.
    bound = 2.0**-11 * np.abs(expected) + 8 * 2.0**-24 * 3.8 * np.abs(rgba).max() + 2.0**-25
    assert np.all(np.abs(got - np.minimum(expected, 65504)) <= bound)
    assert (expected == 0).any(), "something is cut off at 0"


def test_sharpening_leaves_flat_pictures(folder):
    flat = np.full((H, W, 3), 100, np.uint8)
    got = sharpened(LoadedImage(flat), 2.0)
    np.testing.assert_allclose(got[..., :3], to_linear(100 / 255.0), rtol=2e-3)
    assert np.all(got[..., 3] == 1)


def test_the_scene_and_the_testbed_say_how_much(folder):
    """The scene's key replaces nerf.sharpen, also that of later scenes."""
    expected = sharpened(LoadedImage(RGB), 0.5)
    frames = read_scene(write_scene(folder, sharpen=0.5)).frames
    assert np.array_equal(load_images(frames)[0], expected) and frames[0].premultiplied
    plain, own = write_scene(folder, name="plain.json"), write_scene(folder, name="own.json", sharpen=0.5)
    testbed = Testbed(device="cpu")
    sizes = []
    for scene, amount in ((plain, 0.0), (plain, 0.7), (own, 0.0)):
        testbed.nerf.sharpen = amount
        testbed.load_training_data(scene)
        sizes.append(testbed.stats()["image_bytes"] // (W * H))
    assert sizes == [3, 8, 8] and testbed.nerf.sharpen == 0.5


# --- depth and rays --------------------------------------------------------------------------------------------------


def test_depth_maps(folder):
    """Raw 16 bits, scaled when they are read; on only with integer_depth_scale."""
    depth = RANDOM.integers(0, 65536, (H, W), np.uint16)
    Image.fromarray(depth).save(folder / "d.png")
    path = write_scene(folder, depth_path="d.png", integer_depth_scale=0.001, scale=0.5)
    [image] = loaded(path)
    assert image.depth.dtype == np.uint16 and np.array_equal(image.depth, depth)
    testbed = Testbed(data=path, device="cpu")
    assert testbed.stats()["image_bytes"] == W * H * (3 + 2)
    for keys in ({"enable_depth_loading": False, "integer_depth_scale": 1}, {"integer_depth_scale": -1}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert loaded(write_scene(folder, depth_path="gone.png", **keys))[0].depth is None
    with pytest.warns(DatasetWarning, match="depth_path has no effect without integer_depth_scale"):
        read_scene(write_scene(folder, depth_path="d.png"))


def test_ray_files(folder):
    rays = RANDOM.normal(size=(H, W, 6)).astype("<f4")
    rays.tofile(folder / "rays_a.dat")
    path = write_scene(folder, ["a.png", "b.png"])
    a, b = loaded(path)
    assert np.array_equal(a.rays, rays) and b.rays is None
    testbed = Testbed(data=path, device="cpu")
    assert testbed.nerf.training.near_distance == 0
    assert testbed.stats()["image_bytes"] == W * H * (3 + 24 + 4)


WRONG: list[tuple[str, Any, dict[str, Any], str]] = [
    ("dynamic_mask_a.png", np.zeros((H, W + 1), np.uint8), {}, r"dynamic_mask_a.png: is 13x8 pixels, .* a.png is 12x8"),
    ("dynamic_mask_a.png", b"no image", {}, r"dynamic_mask_a.png: cannot be read as an image"),
    ("a.png.alpha.png", np.zeros((H - 1, W), np.uint8), {}, r"a.png.alpha.png: is 12x7 pixels, .* a.png is 12x8"),
    ("d.png", np.zeros((H, W), np.uint8), {"depth": 1}, r"d.png: a depth map must be a 16-bit image .* not of mode L"),
    ("d.png", np.zeros((H, W, 3), np.uint8), {"depth": 1}, r"d.png: a depth map must be .* not of mode RGB"),
    ("d.png", np.zeros((H, W + 2), np.uint16), {"depth": 1}, r"d.png: is 14x8 pixels, but its image a.png is 12x8"),
    ("d.png", b"no image", {"depth": 1}, r"d.png: cannot be read as a depth map"),
    ("d.png", None, {"depth": 1}, r"frame 0 \(a.png\): its depth map .*d.png does not exist"),
    ("rays_a.dat", b"\0" * 24 * 95, {}, r"rays_a.dat: has 2280 bytes; rays of 12x8 pixels, .* would be 2304"),
    ("rays_a.dat", np.full((H, W, 6), np.nan, "<f4").tobytes(), {}, r"rays_a.dat: holds values that are not finite"),
    ("", None, {"depth": 3}, r"frame 0 \(a.png\): depth_path is 3; it must be the name of a file"),
    ("", None, {"white_transparent": "yes"}, r"transforms.json: white_transparent is 'yes'; it must be true or false"),
    ("", None, {"fix_premult": 2}, r"transforms.json: fix_premult is 2; it must be true or false"),
    ("", None, {"integer_depth_scale": "x"}, r"transforms.json: integer_depth_scale is 'x'; it must be a number"),
    ("", None, {"sharpen": -1}, r"transforms.json: sharpen is -1; it must not be negative"),
]  # fmt: skip


@pytest.mark.parametrize("name,content,keys,message", WRONG, ids=[w[3] for w in WRONG])
def test_errors_name_the_file(name, content, keys, message, folder):
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(folder / name)
    keys = dict(keys)
    if "depth" in keys:
        keys |= {"depth_path": "d.png" if keys.pop("depth") == 1 else 3, "integer_depth_scale": 1}
    testbed = Testbed(device="cpu")
    with pytest.raises(RuntimeError, match=message) as raised:
        testbed.load_training_data(write_scene(folder, **keys))
    assert "\n" not in str(raised.value) and testbed.nerf.training.dataset.n_images == 0


def test_truncated_depth_map(folder):
    Image.fromarray(RANDOM.integers(0, 65536, (64, 64), np.uint16)).save(folder / "d.png")
    content = (folder / "d.png").read_bytes()
    (folder / "d.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=r"d.png: cannot be read as a depth map: \S"):
        Testbed(data=write_scene(folder, depth_path="d.png", integer_depth_scale=1), device="cpu")


def test_empty_file_paths(tmp_path):
    """C.3: <last part of the file's stem>_<number>/rgba.png."""
    for i in range(2):
        (tmp_path / f"train_{i:03d}").mkdir()
        Image.new("RGB", (W, H)).save(tmp_path / f"train_{i:03d}" / "rgba.png")
    scene = read_scene(write_scene(tmp_path, ["", ""], "transforms_train.json"))
    assert [f.file_path for f in scene.frames] == ["train_000/rgba.png", "train_001/rgba.png"]
    (tmp_path / "plain_000").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "plain_000" / "rgba.png")
    assert len(read_scene(write_scene(tmp_path, [""], "plain.json")).frames) == 1


def test_extensions_are_tried_in_order(tmp_path):
    """C.4, as far as there is a library that reads them."""
    order = ["png", "jpg", "jpeg", "bmp", "gif", "tga", "pnm", "psd", "exr"]
    for extension in order:
        (tmp_path / f"a.{extension}").write_bytes(b"")
    for extension in order:
        [frame] = read_scene(write_scene(tmp_path, ["a"])).frames
        assert frame.image_path.name == f"a.{extension}"
        frame.image_path.unlink()


def test_pnm(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.pnm")
    assert np.array_equal(load(tmp_path / "a.pnm").pixels, RGB)


# --- arrays ----------------------------------------------------------------------------------------------------------

IMAGES = np.stack([RGB, RGB])
WRONG_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"masks": np.zeros((1, H, W), bool)}, "masks must be one an image: 2, not 1"),
    ({"masks": np.zeros((2, H, W), np.uint8)}, "image 0: the mask is uint8; it must be bool"),
    ({"masks": np.zeros((2, H, W + 1), bool)}, "image 0: the mask must be of the image's size, 12x8"),
    ({"masks": [None, np.zeros((H, W, 1), bool)]}, "image 1: the mask must be bool or uint8 of shape"),
    ({"depths": np.zeros((3, H, W))}, "depths must be one an image: 2, not 3"),
    ({"depths": np.zeros((2, H, W), np.uint16)}, "image 0: the depth map is uint16; it must be float, in world units"),
    ({"depths": np.zeros((2, H - 1, W))}, "image 0: the depth map must be of the image's size, 12x8"),
    ({"depths": np.zeros((2, H, W, 1))}, "image 0: the depth map must be uint16 or float of shape"),
]


@pytest.mark.parametrize("change,message", WRONG_ARRAYS, ids=[message for _, message in WRONG_ARRAYS])
def test_set_images_refuses(change, message):
    testbed = Testbed(device="cpu")
    with pytest.raises(ValueError, match=message):
        testbed.set_images(IMAGES, np.stack([np.array(POSE)] * 2), (20, 20, 6, 4), **change)
    assert testbed.nerf.training.dataset.n_images == 0
