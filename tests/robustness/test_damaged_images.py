"""Mutated EXR and depth files: RuntimeError that names the file, or the picture; never anything else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pyngp.exr import read_exr
from pyngp.frame_images import read_depth

RANDOM = np.random.default_rng(0)


def mutated(content: bytes, n: int) -> list[bytes]:
    """n variants: a few bytes changed, mostly near the start, or the end cut off."""
    variants = []
    for i in range(n):
        b = bytearray(content)
        for _ in range(RANDOM.integers(1, 6)):
            b[RANDOM.integers(0, min(500, len(b)) if RANDOM.random() < 0.7 else len(b))] = RANDOM.integers(0, 256)
        variants.append(bytes(b[: RANDOM.integers(0, len(b))] if i % 5 == 0 else b))
    return variants


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["exr", "depth"])
def test_mutated_files(kind, tmp_path):
    path = tmp_path / ("x.exr" if kind == "exr" else "x.png")
    read = read_exr if kind == "exr" else read_depth
    if kind == "exr":
        openexr = pytest.importorskip("OpenEXR")
        header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
        openexr.File(header, {"RGBA": RANDOM.random((40, 50, 4)).astype(np.float16)}).write(str(path))
    else:
        Image.fromarray(RANDOM.integers(0, 65536, (40, 50), np.uint16)).save(path)
    assert read(path).shape[:2] == (40, 50)
    failed = 0
    for content in mutated(path.read_bytes(), 150):
        path.write_bytes(content)
        try:
            read(path)
        except RuntimeError as error:
            failed += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert failed > 50
