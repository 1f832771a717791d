"""The devices that a Testbed can run on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from pyngp import _core


@dataclass(frozen=True)
class Device:
    """A device that Testbed(device=id) accepts. Memory is None where a device has none of its own."""

    id: str
    name: str
    compute_capability: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


def _cpu_name() -> str:
    """Processor model, threads and instruction set in use."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    isa = os.environ.get("PYNGP_CPU_ISA") or _core.available_isas()[0]
    return f"{model}, {_core.num_threads()} threads, {isa}"


def devices() -> list[Device]:
    """Usable devices, the one that device="auto" picks first; the CPU is always the last."""
    found = [
        Device(
            f"cuda:{d['index']}",
            d["name"],
            f"{d['compute_capability'] // 10}.{d['compute_capability'] % 10}",
            d["total_bytes"],
            d["free_bytes"],
        )
        for d in _core.cuda_devices()
    ]
    return [*found, Device("cpu", _cpu_name())]


def device_name(device: str) -> str:
    """Name of the device `Testbed.device` names."""
    return _cpu_name() if device == "cpu" else {d.id: d.name for d in devices()}.get(device, device)
