"""Results on a GPU as DeviceArrays, beside those in host memory; memory of results."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import FOV_X
from pyngp import DeviceArray, Testbed, _core

needs_cuda = pytest.mark.skipif(not _core.has_cuda, reason=_core.cuda_unavailable_reason())
DL_CPU, DL_CUDA = 1, 2
CHANNELS = ("rgb", "alpha", "depth", "normal")


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(3).uniform(-0.6, 0.6, (3000, 3)).astype(np.float32)


def along(n: int) -> np.ndarray:
    return np.tile(np.float32([0.0, 0.6, 0.8]), (n, 1))


def view(testbed: Testbed, tiny: Any, size: int = 40, **keys: Any) -> dict[str, Any]:
    return testbed.render_channels(tiny.test_poses[0], size, size, fov_x=FOV_X, **keys)


def test_out_is_checked(device, trained, tiny):
    with pytest.raises(ValueError, match="out is 'gpu'"):
        view(trained, tiny, out="gpu")
    if device == "cpu":
        with pytest.raises(ValueError, match=r"needs a Testbed on a GPU; this one runs on the CPU"):
            view(trained, tiny, out="device")
    whole = view(trained, tiny, out="numpy")
    assert all(isinstance(a, np.ndarray) for a in whole.values())


def test_results_are_independent(trained, tiny):
    """Memory of results is reused only when they are gone, also after the Testbed."""
    sizes = (16, 64, 200)
    images = [(n, trained.render(n, n), view(trained, tiny, n)["depth"]) for n in sizes for _ in range(3)]
    copies = [(rgba.copy(), depth.copy()) for _, rgba, depth in images]
    for n in sizes:
        for _ in range(3):
            trained.render(n, n)[:] = 7
    assert all(rgba.flags.c_contiguous and rgba.flags.writeable for _, rgba, _ in images)
    del trained
    gc.collect()
    for (n, rgba, depth), (rgba_before, depth_before) in zip(images, copies, strict=True):
        assert rgba.shape == (n, n, 4) and np.array_equal(rgba, rgba_before)
        assert np.array_equal(depth, depth_before, equal_nan=True)


@needs_cuda
def test_channels_on_the_device(gpu, tiny):
    expected, got = view(gpu, tiny), view(gpu, tiny, out="device")
    assert list(got) == list(expected) == list(CHANNELS)
    for name, array in got.items():
        assert isinstance(array, DeviceArray) and array.device == gpu.device
        assert array.shape == expected[name].shape and array.dtype == np.float32
        assert np.array_equal(array.numpy(), expected[name], equal_nan=True)
    assert expected["alpha"].max() > 0.9 and np.isnan(expected["depth"]).any()
    for name in CHANNELS:
        part = view(gpu, tiny, channels=[name], out="device")
        assert list(part) == [name] and np.array_equal(np.asarray(part[name]), expected[name], equal_nan=True)


@needs_cuda
def test_channels_of_both_devices(gpu, gpu_snapshot, tiny):
    """The same formulas finish pixels on either device: what differs is the networks' precision."""
    cpu = Testbed(device="cpu")
    cpu.load_snapshot(gpu_snapshot)
    ours, theirs = view(gpu, tiny), view(cpu, tiny)
    solid = (ours["alpha"] > 0.95) & (theirs["alpha"] > 0.95)
    assert solid.mean() > 0.02
    assert np.abs(ours["rgb"] - theirs["rgb"]).mean() < 5e-3
    assert np.median(np.abs(ours["depth"] - theirs["depth"])[solid]) < 1e-2
    cosine = (ours["normal"] * theirs["normal"]).sum(-1)[solid]
    assert np.median(cosine) > 0.9
    for channels in (ours, theirs):
        lengths = np.linalg.norm(channels["normal"], axis=-1)
        hit = channels["alpha"] >= 1e-3
        np.testing.assert_allclose(lengths[hit][lengths[hit] > 0], 1, rtol=1e-4)
        assert (lengths[~hit] == 0).all() and np.isnan(channels["depth"][~hit]).all()


@needs_cuda
def test_query_of_both_devices(gpu, gpu_snapshot, points):
    cpu = Testbed(device="cpu")
    cpu.load_snapshot(gpu_snapshot)
    points = np.concatenate([points, 50 * points[:100], np.full((1, 3), np.nan, np.float32)])
    for occupancy in (False, True):
        rgb, density = gpu.query(points, along(len(points)), occupancy=occupancy)
        rgb_cpu, density_cpu = cpu.query(points, along(len(points)), occupancy=occupancy)
        # Boxes and cells are decided from the same bits on both; the threshold of cells may be the grid's
        # mean, a sum in another order.
        both = (density == 0) == (density_cpu == 0)
        assert both.all() if not occupancy else both.mean() > 0.999
        assert np.array_equal((rgb == 0).all(-1), density == 0) and (density_cpu == 0).any() and (density > 0).any()
        dense = (density_cpu > 1) & (density > 0)
        np.testing.assert_allclose(np.log(density[dense]), np.log(density_cpu[dense]), atol=0.1)
        assert np.abs(rgb - rgb_cpu).mean() < 5e-3


@needs_cuda
def test_the_object(gpu, tiny):
    array = view(gpu, tiny, out="device")["rgb"]
    assert (array.shape, array.ndim, array.size, array.nbytes, len(array)) == ((40, 40, 3), 3, 4800, 19200, 40)
    assert repr(array) == f"DeviceArray(shape=(40, 40, 3), dtype=float32, device='{gpu.device}')"
    host = array.numpy()
    assert host.flags.writeable and host.flags.c_contiguous
    for i in (0, 7, 39, -1, -40):
        assert array[i].shape == (40, 3) and np.array_equal(array[i].numpy(), host[i])
        assert np.array_equal(array[i][-2].numpy(), host[i][-2])
    assert np.array_equal([row.numpy() for row in array], host)
    for i in (40, -41):
        with pytest.raises(IndexError, match="of 40"):
            array[i]
    with pytest.raises(TypeError, match="no length"):
        len(array[0][0][0])
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises((ValueError, TypeError)):  # TypeError: NumPy 1
        np.array(array, copy=False, dtype=np.float32)
    assert array.__dlpack_device__() == (DL_CUDA, int(gpu.device.split(":")[1]))
    with pytest.raises(BufferError, match="on its own device"):
        array.__dlpack__(dl_device=(DL_CPU, 0))
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(copy=True)
    interface = array.__cuda_array_interface__
    assert interface["typestr"] == "<f4" and interface["shape"] == (40, 40, 3) and interface["version"] == 3
    assert interface["strides"] is None and interface["stream"] is None and interface["data"][1] is False


@needs_cuda
def test_query_on_the_device(gpu, tiny):
    """Positions from a picture, so that no other library is needed."""
    picture = view(gpu, tiny, 2000, channels=["rgb"], out="device")["rgb"]
    for array in (picture[1000], picture[3]):
        host = array.numpy()
        assert host.shape == (2000, 3)
        for occupancy in (False, True):
            density = gpu.query(array, occupancy=occupancy)
            assert isinstance(density, DeviceArray) and density.shape == (2000,)
            assert np.array_equal(density.numpy(), gpu.query(host, occupancy=occupancy))
            got = gpu.query(array, array, occupancy=occupancy)
            for a, b in zip(got, gpu.query(host, host, occupancy=occupancy), strict=True):
                assert isinstance(a, DeviceArray) and np.array_equal(a.numpy(), b)
    assert gpu.query(picture[1000]).numpy().max() > 0


@needs_cuda
def test_large_queries(gpu):
    """More points than are evaluated at once: 2^20."""
    n = (1 << 20) + 4321
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (n, 3)).astype(np.float32)
    rgb, density = gpu.query(points, np.broadcast_to(along(1), points.shape))
    for part in (slice(0, 1000), slice(n - 5000, n)):
        one, two = gpu.query(points[part], np.broadcast_to(along(1), points[part].shape))
        assert np.array_equal(rgb[part], one) and np.array_equal(density[part], two)


@needs_cuda
def test_device_arrays_outlive_the_testbed(gpu_snapshot, tiny):
    testbed = Testbed(device="cuda")
    testbed.load_snapshot(gpu_snapshot)
    arrays = view(testbed, tiny, 64, out="device")
    expected = {k: a.numpy() for k, a in arrays.items()}
    row = arrays["rgb"][5]
    capsule = arrays["alpha"].__dlpack__()
    del testbed
    gc.collect()
    other = Testbed(device="cuda")
    other.load_snapshot(gpu_snapshot)
    other.render(64, 64)
    view(other, tiny, 64, out="device")
    assert all(np.array_equal(arrays[k].numpy(), expected[k], equal_nan=True) for k in arrays)
    density = other.query(row)  # made by another Testbed
    assert np.array_equal(density.numpy(), other.query(expected["rgb"][5]))
    del arrays, capsule
    gc.collect()
    assert np.array_equal(row.numpy(), expected["rgb"][5])


@needs_cuda
def test_device_memory_is_reused(gpu, tiny):
    def use() -> int:
        arrays = view(gpu, tiny, 256, out="device")
        arrays["rgb"].__dlpack__()  # nobody takes the capsule
        arrays["alpha"].__dlpack__(stream=1, max_version=(1, 0))
        _ = arrays["depth"].__cuda_array_interface__
        gpu.query(arrays["normal"][0])
        return gpu.stats()["device_bytes"]

    for _ in range(3):
        use()
    assert len({use() for _ in range(10)}) == 1


@needs_cuda
def test_page_locked_memory_is_reused(gpu):
    """Few different addresses over many pictures."""
    gpu.render(611, 400)
    addresses = [gpu.render(611, 400).ctypes.data for _ in range(40)]
    assert len(set(addresses)) <= 10


@needs_cuda
def test_many_results_at_once(gpu):
    """More than is kept page-locked; all of them different arrays."""
    images = [gpu.render(512, 512) for _ in range(100)]
    assert len({image.ctypes.data for image in images}) == 100
    assert all(np.array_equal(image, images[0]) for image in images)


@needs_cuda
def test_live_arrays_at_exit(python, gpu_snapshot):
    """Arrays of any kind may be alive when the process ends."""
    code = """
import sys, numpy as np
from pyngp import Testbed
testbed = Testbed(device="cuda")
testbed.load_snapshot(sys.argv[1])
image = testbed.render(640, 480)
channels = testbed.render_channels(np.eye(4)[:3], 64, 64, fov_x=50, out="device")
capsule = channels["rgb"].__dlpack__()
del testbed
sys.kept = [image, channels, capsule]
print(image.shape)
"""
    assert "(480, 640, 4)" in python(code, gpu_snapshot).stdout
