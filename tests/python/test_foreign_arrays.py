"""Arrays of other libraries as arguments of a Testbed on a GPU, by their protocols; what is refused; and the libraries
themselves. What needs PyTorch, CuPy or JAX is skipped without them."""

from __future__ import annotations

import gc
import importlib.util
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import INTRINSICS, SIZE
from pyngp import DeviceArray, Testbed, _core
from python.test_device_arrays import DL_CUDA, along, needs_cuda, view


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(3).uniform(-0.6, 0.6, (3000, 3)).astype(np.float32)


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


def library(name: str) -> Any:
    """torch or cupy with a GPU that works, else a skip."""
    module = pytest.importorskip(name, exc_type=ImportError)
    if name == "torch" and not module.cuda.is_available():
        pytest.skip("torch has no GPU here")
    return module


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
def test_torch_tensors_outlive_everything(gpu_snapshot, tiny):
    torch = library("torch")
    testbed = Testbed(device="cuda")
    testbed.load_snapshot(gpu_snapshot)
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
def test_jax(python, gpu_snapshot):
    """In a process of its own, or JAX would take most of the memory."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("there is no jax")
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    gpus = python("import jax; print(len(jax.devices('gpu')))", env=environment, check=False)
    if gpus.returncode != 0:
        pytest.skip("jax has no GPU here")
    assert "good" in python(JAX, gpu_snapshot, env=environment).stdout
