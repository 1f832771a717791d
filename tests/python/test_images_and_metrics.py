"""Image files of many kinds; PSNR and SSIM against closed forms and direct loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image
from pyngp.images import linear_to_srgb, read_image, read_images, srgb_to_linear, to_bytes, write_animation, write_image
from pyngp.metrics import psnr, ssim

RGBA = np.random.default_rng(1).integers(0, 256, (9, 7, 4), np.uint8)
RGB = RGBA[..., :3]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tga", "a.gif"])
def test_lossless_formats(name, tmp_path):
    options = {"lossless": True} if name.endswith("webp") else {}
    picture = Image.fromarray(RGB)
    picture.quantize(64).save(tmp_path / name) if name.endswith("gif") else picture.save(tmp_path / name, **options)
    expected = np.asarray(picture.quantize(64).convert("RGB")) if name.endswith("gif") else RGB
    got = read_image(tmp_path / name)
    assert got.dtype == np.uint8 and np.array_equal(got, expected)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tga"])
def test_alpha(name, tmp_path):
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    Image.fromarray(RGBA).save(tmp_path / name, **options)
    assert np.array_equal(read_image(tmp_path / name), RGBA)


def test_jpeg(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (32, 40, 3))
    Image.fromarray(np.ascontiguousarray(smooth)).save(tmp_path / "a.jpg", quality=95)
    got = read_image(tmp_path / "a.jpg")
    assert got.shape == (32, 40, 3) and np.abs(got.astype(int) - smooth).max() < 12


def test_grey(tmp_path):
    grey = RGB[..., 0]
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert np.array_equal(read_image(tmp_path / "l.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(np.dstack([grey, RGB[..., 1]])).save(tmp_path / "la.png")
    got = read_image(tmp_path / "la.png")
    assert np.array_equal(got, np.dstack([grey, grey, grey, RGB[..., 1]]))
    Image.fromarray(grey > 99).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 1], np.where(grey > 99, 255, 0))


def test_16_bit_is_reduced(tmp_path):
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    got = read_image(tmp_path / "deep.png")
    assert got.shape == (2, 4, 3) and np.array_equal(got[..., 2], deep >> 8)


def test_palette_with_transparency(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.new("P", (2, 2))
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * (253 * 3))
    picture.save(tmp_path / "p.png", transparency=1)
    got = read_image(tmp_path / "p.png")
    assert got[0, 0].tolist() == [255, 0, 0, 255] and got[1, 0].tolist() == [0, 0, 255, 255]
    assert got[0, 1].tolist() == [0, 255, 0, 0]


def test_unreadable_images(tmp_path):
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut.png", "text.png", "empty.png", "folder.png"):
        with pytest.raises(RuntimeError, match=rf"{name}: cannot be read as an image: "):
            read_image(tmp_path / name)
    with pytest.raises(RuntimeError, match=r"none.png: no such image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(RuntimeError, match=r"cut.png: cannot be read"):
        read_images([tmp_path / "whole.png", tmp_path / "cut.png"])


def test_many_images_keep_their_order(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.new("RGB", (3, 2), (i, 0, 0)).save(path)
    assert [image[0, 0, 0] for image in read_images(paths)] == list(range(40))


def test_writing(tmp_path):
    write_image(tmp_path / "deep" / "a.png", RGBA / 255.0)
    assert np.array_equal(read_image(tmp_path / "deep" / "a.png"), RGBA)
    write_image(tmp_path / "grey.png", RGB[..., 0] / 255.0)
    assert np.array_equal(read_image(tmp_path / "grey.png")[..., 0], RGB[..., 0])
    assert to_bytes(np.array([-1, 0, 0.5, 0.999, 1, 9, np.nan])).tolist() == [0, 0, 128, 255, 255, 255, 0]


def test_animation(tmp_path):
    frames = [np.full((10, 12, 3), i / 4) for i in range(5)]
    write_animation(tmp_path / "a.webp", frames, fps=10)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 5 and image.size == (12, 10)
        image.seek(4)
        assert np.asarray(image.convert("RGB")).min() > 245
    with pytest.raises(RuntimeError, match=r"b.webp: no frames"):
        write_animation(tmp_path / "b.webp", [], fps=10)


def test_srgb():
    """The standard's own points, and there and back."""
    known = {0.0: 0.0, 0.0031308: 0.04045, 0.214041: 0.5, 0.5: 0.735357, 1.0: 1.0}
    np.testing.assert_allclose(linear_to_srgb(np.array(list(known))), list(known.values()), atol=1e-5)
    x = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(srgb_to_linear(linear_to_srgb(x)), x, atol=1e-6)
    assert linear_to_srgb(np.array([-0.5])) == 0


def test_psnr():
    a = np.full((4, 5, 3), 0.5)
    for difference in (0.1, 0.01, 0.5):
        assert psnr(a, a + difference) == pytest.approx(-20 * np.log10(difference))
    assert psnr(a, a + 7) == pytest.approx(-20 * np.log10(0.5)), "both are clipped"
    one = a.copy()
    one[0, 0, 0] += 0.3
    assert psnr(a, one) == pytest.approx(-10 * np.log10(0.09 / 60))
    assert psnr(a, a) >= 100


def direct_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Pixel by pixel, with the window's 25 weights; borders mirrored including the edge pixel."""
    kernel = np.array([0.120078, 0.233881, 0.292082, 0.233881, 0.120078])
    luminance = [image @ [0.2126, 0.7152, 0.0722] for image in (a, b)]
    x, y = (np.pad(image, 2, mode="symmetric") for image in luminance)
    values = []
    for i, j in itertools.product(range(a.shape[0]), range(a.shape[1])):
        w = np.outer(kernel, kernel)
        p, q = x[i : i + 5, j : j + 5], y[i : i + 5, j : j + 5]
        mp, mq = (w * p).sum(), (w * q).sum()
        vp, vq = (w * p * p).sum() - mp**2, (w * q * q).sum() - mq**2
        cov = (w * p * q).sum() - mp * mq
        c1, c2 = 1e-4, 9e-4
        values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim():
    a = RGB / 255.0
    noisy = np.clip(a + np.random.default_rng(2).normal(0, 0.2, a.shape), 0, 1)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, noisy) == pytest.approx(direct_ssim(a, noisy), abs=1e-9)
    assert ssim(a, noisy) == pytest.approx(ssim(noisy, a))
    assert ssim(a, noisy) < 0.95
    assert ssim(a, 1 - a) < 0
