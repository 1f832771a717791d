"""Arrays that lie on a GPU: results as DeviceArrays, arguments from other libraries, and what is refused. What needs
PyTorch, CuPy or JAX is skipped without them."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import FOV_X, INTRINSICS, SIZE
from pyngp import DeviceArray, Testbed, _core

needs_cuda = pytest.mark.skipif(not _core.has_cuda, reason=_core.cuda_unavailable_reason())
DL_CPU, DL_CUDA = 1, 2
CHANNELS = ("rgb", "alpha", "depth", "normal")


def library(name: str) -> Any:
    """torch or cupy with a GPU that works, else a skip."""
    module = pytest.importorskip(name, exc_type=ImportError)
    if name == "torch" and not module.cuda.is_available():
        pytest.skip("torch has no GPU here")
    return module


@pytest.fixture(scope="module")
def snapshot(tiny, tmp_path_factory) -> Path:
    """A model trained on the GPU."""
    testbed = Testbed(data=tiny.train, config="base_14", device="cuda")
    testbed.fit(200, batch_size=16384)
    path = tmp_path_factory.mktemp("device_arrays") / "tiny.ingp"
    testbed.save_snapshot(path)
    return path


@pytest.fixture
def gpu(snapshot) -> Testbed:
    """That model in a Testbed of the test's own."""
    testbed = Testbed(device="cuda")
    testbed.load_snapshot(snapshot)
    return testbed


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(3).uniform(-0.6, 0.6, (3000, 3)).astype(np.float32)


def along(n: int) -> np.ndarray:
    return np.tile(np.float32([0.0, 0.6, 0.8]), (n, 1))


def view(testbed: Testbed, tiny: Any, size: int = 40, **keys: Any) -> dict[str, Any]:
    return testbed.render_channels(tiny.test_poses[0], size, size, fov_x=FOV_X, **keys)


# --- other people's arrays, as far as the protocols go


class Interface:
    """An array by __cuda_array_interface__ alone."""

    def __init__(self, pointer: int, shape: tuple[int, ...] = (4, 3), typestr: str = "<f4", **keys: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (pointer, False), "version": 3, "strides": None,
        } | keys  # fmt: skip


class DLPack:
    """An array by DLPack alone; `device` is what it claims."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] | None = None) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **keys: Any) -> Any:
        assert self.device is None, "must be refused before it is exported"
        return self.array.__dlpack__(**keys)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device or self.array.__dlpack_device__()


class ReExported:
    """A DeviceArray that shows one protocol, or a changed interface."""

    def __init__(self, array: DeviceArray, **keys: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | keys


class ReExportedByDLPack:
    def __init__(self, array: DeviceArray, version: tuple[int, int] | None = None) -> None:
        self.array, self.version, self.streams = array, version, []

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream, max_version=self.version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


FAKES = {
    "interface": lambda shape=(4, 3): Interface(4096, shape),
    "dlpack": lambda shape=(4, 3): DLPack(np.zeros(shape, np.float32), (DL_CUDA, 0)),
}


@pytest.mark.parametrize("fake", FAKES)
def test_the_cpu_takes_no_device_arrays(fake, tiny):
    testbed = Testbed(device="cpu")
    array = FAKES[fake]()
    assert _core.is_device_array(array)
    for arguments in ((array,), (array, array), (np.zeros((4, 3)), array)):
        with pytest.raises(ValueError, match=r"(positions|directions): .* but this Testbed runs on the CPU"):
            testbed.query(*arguments)
    image = FAKES[fake]((8, 8, 4))
    with pytest.raises(ValueError, match=r"image 0: .* but this Testbed runs on the CPU"):
        testbed.set_images([image], tiny.poses[:1], INTRINSICS)
    with pytest.raises(ValueError, match=r"images: .* but this Testbed runs on the CPU"):
        testbed.set_images(FAKES[fake]((1, 8, 8, 4)), tiny.poses[:1], INTRINSICS)


def test_out_is_checked(device, trained, tiny):
    with pytest.raises(ValueError, match="out is 'gpu'"):
        view(trained, tiny, out="gpu")
    if device == "cpu":
        with pytest.raises(ValueError, match=r"needs a Testbed on a GPU; this one runs on the CPU"):
            view(trained, tiny, out="device")
    whole = view(trained, tiny, out="numpy")
    assert all(isinstance(a, np.ndarray) for a in whole.values())


def test_dlpack_in_host_memory(trained, points):
    expected = trained.query(points, along(3000))
    got = trained.query(DLPack(points), DLPack(along(3000)))
    assert not _core.is_device_array(DLPack(points))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_torch_in_host_memory(trained, points):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    assert np.array_equal(trained.query(torch.from_numpy(points)), trained.query(points))
    with pytest.raises(RuntimeError, match="requires grad"):
        trained.query(torch.from_numpy(points).requires_grad_())


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


# --- results on the device


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
def test_channels_of_both_devices(gpu, snapshot, tiny):
    """The same formulas finish pixels on either device: what differs is the networks' precision."""
    cpu = Testbed(device="cpu")
    cpu.load_snapshot(snapshot)
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
def test_query_of_both_devices(gpu, snapshot, points):
    cpu = Testbed(device="cpu")
    cpu.load_snapshot(snapshot)
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
def test_device_arrays_outlive_the_testbed(snapshot, tiny):
    testbed = Testbed(device="cuda")
    testbed.load_snapshot(snapshot)
    arrays = view(testbed, tiny, 64, out="device")
    expected = {k: a.numpy() for k, a in arrays.items()}
    row = arrays["rgb"][5]
    capsule = arrays["alpha"].__dlpack__()
    del testbed
    gc.collect()
    other = Testbed(device="cuda")
    other.load_snapshot(snapshot)
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
def test_live_arrays_at_exit(python, snapshot):
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
    assert "(480, 640, 4)" in python(code, snapshot).stdout


# --- arguments on the device, by the protocols alone


@needs_cuda
def test_protocols_of_arguments(gpu, tiny):
    positions = view(gpu, tiny, 500, out="device")["rgb"][250]
    expected = gpu.query(positions).numpy()
    assert expected.max() > 0
    interfaces = [
        ReExported(positions), ReExported(positions, stream=1), ReExported(positions, stream=2),
        ReExported(positions, strides=(12, 4)), ReExported(positions, version=2),
    ]  # fmt: skip
    for array in [*interfaces, ReExportedByDLPack(positions), ReExportedByDLPack(positions, (1, 0))]:
        got = gpu.query(array)
        assert isinstance(got, DeviceArray) and np.array_equal(got.numpy(), expected)
        if isinstance(array, ReExportedByDLPack):
            assert array.streams == [1]  # the default stream, for which the Testbed waits
    empty = Interface(0, (0, 3))
    assert gpu.query(empty).shape == (0,)
    assert [a.shape for a in gpu.query(empty, empty)] == [(0, 3), (0,)]
    assert gpu.query(empty).numpy().shape == (0,)


@needs_cuda
def test_arguments_that_are_refused(gpu, tiny, points):
    device = int(gpu.device.split(":")[1])
    picture = view(gpu, tiny, 500, out="device")["rgb"]
    positions = picture[250]

    def refused(message: str, *arguments: Any) -> None:
        with pytest.raises(ValueError, match=message):
            gpu.query(*arguments)

    refused(r"positions: the array lies on cuda:99, but this Testbed runs on cuda:\d", DLPack(points, (DL_CUDA, 99)))
    refused("points to is no memory of a CUDA device", Interface(points.ctypes.data))
    refused("points to is no memory of a CUDA device", Interface(4096))
    refused("positions must have shape", picture)
    refused("positions must have shape", ReExported(positions, shape=(500, 1, 3)))
    refused("directions must have shape", positions, picture)
    refused("C-contiguous", ReExported(positions, shape=(100, 3), strides=(24, 4)))
    refused("C-contiguous", ReExported(positions, shape=(100, 3), strides=(4, 400)))
    refused("must be float32 on a device, not float64", ReExported(positions, shape=(50, 3), typestr="<f8"))
    refused("must be float32 on a device, not int32", ReExported(positions, typestr="<i4"))
    refused("little-endian", ReExported(positions, typestr=">f4"))
    refused("mask", ReExported(positions, mask=positions))
    refused("pass both in one place", positions, along(500))
    refused("pass both in one place", along(500), positions)
    cpu = Testbed(device="cpu")
    with pytest.raises(
        ValueError, match=rf"positions: the array lies on cuda:{device}, but this Testbed runs on the CPU"
    ):
        cpu.query(positions)
    with pytest.raises(TypeError):
        DeviceArray()
    assert np.isfinite(gpu.query(positions).numpy()).all()


# --- training images


def losses(config: dict, images: Any, cameras: np.ndarray, **keys: Any) -> float:
    testbed = Testbed(config=config, device="cuda", deterministic=True, **keys)
    testbed.set_images(images, cameras, INTRINSICS)
    gc.collect()
    testbed.fit(2, batch_size=512)
    return testbed.loss


@pytest.fixture
def pictures(gpu, tiny) -> list[DeviceArray]:
    """Training images, float and linear."""
    keys = {"intrinsics": INTRINSICS, "channels": ["rgb"]}
    return [gpu.render_channels(p, SIZE, SIZE, out="device", **keys)["rgb"] for p in tiny.poses[:4]]


@needs_cuda
def test_images_on_the_device(pictures, tiny, small_config):
    cameras, host = tiny.poses[:4], [p.numpy() for p in pictures]
    expected = losses(small_config, host, cameras)
    assert losses(small_config, pictures, cameras) == expected
    assert losses(small_config, [pictures[0], host[1], pictures[2], host[3]], cameras) == expected
    assert losses(small_config, [ReExported(p) for p in pictures], cameras) == expected
    assert losses(small_config, [ReExportedByDLPack(p) for p in pictures], cameras) == expected
    with pytest.raises(RuntimeError, match="no training data"):
        testbed = Testbed(device="cuda")
        testbed.set_images(pictures, cameras, INTRINSICS)
        testbed.clear_training_data()
        testbed.train(512)


@needs_cuda
def test_images_that_leave_no_room(pictures, tiny, small_config):
    """They go to host memory, as those of NumPy do."""
    limit = 400 << 20
    limited = Testbed(device="cuda", max_device_bytes=limit)
    kept = limited.keep_images(pictures[0], "image 0")
    assert isinstance(kept, np.ndarray) and np.array_equal(kept, pictures[0].numpy())
    cameras = tiny.poses[:4]
    expected = losses(small_config, [p.numpy() for p in pictures], cameras)
    assert losses(small_config, pictures, cameras, max_device_bytes=limit) == expected


@needs_cuda
def test_images_are_copies_that_stay(pictures, tiny, small_config, tmp_path):
    """The dataset holds them: they survive a snapshot's loading, and go nowhere else."""
    testbed = Testbed(config=small_config, device="cuda")
    testbed.set_images(pictures, tiny.poses[:4], INTRINSICS)
    assert testbed.stats()["image_bytes"] == 4 * SIZE * SIZE * 3 * 4
    testbed.fit(2, batch_size=512)
    testbed.save_snapshot(tmp_path / "s.ingp")
    testbed.load_snapshot(tmp_path / "s.ingp")
    testbed.fit(2, batch_size=512)
    assert np.isfinite(testbed.loss)
    dataset = testbed.nerf.training.dataset
    with pytest.raises(RuntimeError, match=r"image 0: its pixels lie on cuda:\d+, but this Testbed runs on cpu"):
        Testbed(device="cpu").set_dataset(dataset)
    other = Testbed(config=small_config, device="cuda")
    other.set_dataset(dataset)
    del testbed, dataset
    gc.collect()
    other.fit(2, batch_size=512)
    assert np.isfinite(other.loss)


@needs_cuda
def test_images_that_are_refused(gpu, pictures, tiny):
    def refused(message: str, images: Any, n: int = 4) -> None:
        with pytest.raises(ValueError, match=message):
            gpu.set_images(images, tiny.poses[:n], INTRINSICS)

    first = pictures[0]
    refused("image 0 must have shape", [first[0]], 1)
    refused("images must have shape", first[0])
    refused("image 1 must have shape", [first, ReExported(first, shape=(SIZE, SIZE * 3 // 2, 2))], 2)
    refused("image 0 must be uint8 .* or float32 .* not int32", [ReExported(first, typestr="<i4")], 1)
    refused("image 0 holds no pixels", [Interface(0, (0, 4, 3))], 1)
    refused("cameras must have shape", pictures, 3)
    bad = ReExported(view(gpu, tiny, out="device")["depth"], shape=(10, 40, 4))  # holds NaN
    refused("image 0 holds values that are not finite", [bad], 1)


# --- the libraries themselves


@needs_cuda
def test_torch(gpu, points):
    torch = library("torch")
    here = torch.device(gpu.device)
    p, d = torch.from_numpy(points).to(here), torch.from_numpy(along(3000)).to(here)
    expected = gpu.query(points, along(3000))
    got = gpu.query(p, d)
    for array, values in zip(got, expected, strict=True):
        tensor = torch.from_dlpack(array)
        assert tensor.device == here and tensor.dtype == torch.float32 and tensor.shape == values.shape
        assert np.array_equal(tensor.cpu().numpy(), values)
        assert tensor.data_ptr() == array.__cuda_array_interface__["data"][0]
        tensor += 1  # the same memory
        assert np.array_equal(array.numpy(), values + 1)
        assert np.array_equal(torch.as_tensor(array, device=here).cpu().numpy(), values + 1)
    for wrong, message in (
        (p.double(), "not float64"), (p.half(), "not float16"), (p.bfloat16(), "not bfloat16"),
        (p.T.contiguous().T, "C-contiguous"), (p[::2], "C-contiguous"), (p[:, :2], "shape|C-contiguous"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gpu.query(wrong)
    with pytest.raises((BufferError, RuntimeError)):
        gpu.query(p.clone().requires_grad_())
    assert np.array_equal(torch.from_dlpack(gpu.query(p[100:200])).cpu().numpy(), expected[1][100:200])


@needs_cuda
def test_torch_tensors_outlive_everything(snapshot, tiny):
    torch = library("torch")
    testbed = Testbed(device="cuda")
    testbed.load_snapshot(snapshot)
    expected = view(testbed, tiny, 96)
    tensors = {k: torch.from_dlpack(a) for k, a in view(testbed, tiny, 96, out="device").items()}
    for _ in range(5):
        view(testbed, tiny, 96, out="device")
    del testbed
    gc.collect()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor.cpu().numpy(), expected[name], equal_nan=True)


@needs_cuda
@pytest.mark.parametrize("side_stream", [False, True], ids=["default stream", "side stream"])
def test_torch_streams(side_stream, gpu, points):
    """Arguments that are still being computed, and results that are dropped while they are still being read."""
    torch = library("torch")
    here = torch.device(gpu.device)
    other_points = points[::-1].copy()
    expected, other = gpu.query(points), gpu.query(other_points)
    source, other_source = (torch.from_numpy(p).to(here) for p in (points, other_points))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(here) if side_stream else torch.cuda.default_stream(here)
    for _ in range(5):
        with torch.cuda.stream(stream):
            late = torch.zeros_like(source)
            torch.cuda._sleep(50_000_000)  # tens of milliseconds
            late.copy_(source)
            result = torch.from_dlpack(gpu.query(late))
            torch.cuda._sleep(50_000_000)
            kept = result.clone()
            del result
            gc.collect()
            overwriting = [torch.from_dlpack(gpu.query(other_source)) for _ in range(4)]
        torch.cuda.synchronize()
        assert np.array_equal(kept.cpu().numpy(), expected)
        assert all(np.array_equal(o.cpu().numpy(), other) for o in overwriting)


@needs_cuda
def test_torch_images(tiny, small_config):
    torch = library("torch")
    expected = losses(small_config, tiny.images, tiny.poses)
    images = torch.from_numpy(tiny.images.copy()).to("cuda")
    assert losses(small_config, images, tiny.poses) == expected
    assert losses(small_config, list(images), tiny.poses) == expected
    testbed = Testbed(config=small_config, device="cuda", deterministic=True)
    testbed.set_images(images, tiny.poses, INTRINSICS)
    images.zero_()  # a copy was made
    testbed.fit(2, batch_size=512)
    assert testbed.loss == expected
    bad = torch.full((20, 8, 8, 3), float("inf"), device="cuda")
    with pytest.raises(ValueError, match="images holds values that are not finite"):
        testbed.set_images(bad, tiny.poses, INTRINSICS)
    with pytest.raises(ValueError, match="not int64"):
        testbed.set_images(torch.zeros((20, 8, 8, 3), dtype=torch.int64, device="cuda"), tiny.poses, INTRINSICS)


@needs_cuda
def test_cupy(gpu, points, tiny, small_config):
    cupy = library("cupy")
    p, d = cupy.asarray(points), cupy.asarray(along(3000))
    expected = gpu.query(points, along(3000))
    for array, values in zip(gpu.query(p, d), expected, strict=True):
        for taken in (cupy.asarray(array), cupy.from_dlpack(array)):
            assert taken.dtype == cupy.float32 and taken.shape == values.shape
            assert taken.data.ptr == array.__cuda_array_interface__["data"][0]
            assert np.array_equal(cupy.asnumpy(taken), values)
    with cupy.cuda.Stream(non_blocking=True):
        late = cupy.zeros_like(p)
        late[...] = p
        assert np.array_equal(gpu.query(late).numpy(), expected[1])
    with pytest.raises(ValueError, match="C-contiguous"):
        gpu.query(cupy.asfortranarray(p))
    images = cupy.asarray(tiny.images)
    assert losses(small_config, images, tiny.poses) == losses(small_config, tiny.images, tiny.poses)


JAX = """
import sys, numpy as np, jax, jax.numpy as jnp
from pyngp import Testbed
testbed = Testbed(device="cuda")
testbed.load_snapshot(sys.argv[1])
points = np.random.default_rng(3).uniform(-0.6, 0.6, (3000, 3)).astype(np.float32)
expected = testbed.query(points, np.tile(np.float32([0, 0.6, 0.8]), (3000, 1)))
positions, directions = jnp.asarray(points), jnp.tile(jnp.array([0, 0.6, 0.8], jnp.float32), (3000, 1))
for array, values in zip(testbed.query(positions, directions), expected):
    taken = jax.dlpack.from_dlpack(array)
    assert taken.shape == values.shape and np.array_equal(np.asarray(taken), values)
    assert np.array_equal(np.asarray(taken + 1), values + 1)
print("good")
"""


@needs_cuda
def test_jax(python, snapshot):
    """In a process of its own, or JAX would take most of the memory."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("there is no jax")
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    gpus = python("import jax; print(len(jax.devices('gpu')))", env=environment, check=False)
    if gpus.returncode != 0:
        pytest.skip("jax has no GPU here")
    assert "good" in python(JAX, snapshot, env=environment).stdout
