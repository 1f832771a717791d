"""Types of the arrays that functions take."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from numpy.typing import ArrayLike


class SupportsDLPack(Protocol):
    """An array of any library that exports DLPack: PyTorch, CuPy, JAX and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


class SupportsCudaArrayInterface(Protocol):
    """An array on a CUDA device that says where: Numba's and others."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


AnyArray: TypeAlias = ArrayLike | SupportsDLPack | SupportsCudaArrayInterface
