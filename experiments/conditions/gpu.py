"""Sensors of an NVIDIA GPU by NVML (package `nvidia-ml-py`, extra `nvml`); whatever a GPU does not tell is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from experiments.conditions.files import told

# Bits of the reasons for which clocks are lower than asked (nvml.h, nvmlClocksEventReason*).
REASONS = {
    0x1: "idle",
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "thermal_slowdown",
    0x40: "hardware_thermal_slowdown",
    0x80: "power_brake",
    0x100: "display_clocks",
}
SLOWED = ("power_cap", "hardware_slowdown", "thermal_slowdown", "hardware_thermal_slowdown", "power_brake")
LIMITS = {"power": 0, "thermal": 1, "sync_boost": 2, "board": 3, "low_utilization": 4, "reliability": 5}
CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}


class Gpu:
    """One GPU as NVML knows it. `nvml` is the module, initialized; `handle` the device in it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def ask(self, query: str, *more: Any) -> Any:
        """The answer to a query about this GPU; None where this GPU, driver or package has none."""
        try:
            return getattr(self.nvml, query)(self.handle, *more)
        except (AttributeError, self.nvml.NVMLError):
            return None

    def read(self) -> dict[str, Any]:
        """Clocks (MHz), power (W), temperature (degrees Celsius), what slows it, who else computes on it."""
        reading = {
            "clocks_mhz": told({name: self.ask("nvmlDeviceGetClockInfo", kind) for name, kind in CLOCKS.items()}),
            "highest_clocks_mhz": told(
                {name: self.ask("nvmlDeviceGetMaxClockInfo", kind) for name, kind in CLOCKS.items()}
            ),
            "watts": _thousandths(self.ask("nvmlDeviceGetPowerUsage")),
            "limit_watts": _thousandths(self.ask("nvmlDeviceGetEnforcedPowerLimit")),
            "celsius": self.ask("nvmlDeviceGetTemperature", 0),
            "reasons": self.reasons(),
            "slowed_seconds": self.slowed_seconds(),
            "other_processes": self.other_processes(),
            "persistence": _switch(self.ask("nvmlDeviceGetPersistenceMode")),
            "ecc": _switch(self.ask("nvmlDeviceGetCurrentEccMode")),
        }
        return {name: value for name, value in reading.items() if value is not None and value != {}}

    def reasons(self) -> list[str] | None:
        """Why the clocks are lower than asked, now."""
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        bits = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons") if bits is None else bits  # an older package
        return None if bits is None else [name for bit, name in REASONS.items() if bits & bit]

    def slowed_seconds(self) -> dict[str, float]:
        """Seconds since the driver was loaded in which each limit held the clocks down."""
        found = {name: self.ask("nvmlDeviceGetViolationStatus", policy) for name, policy in LIMITS.items()}
        return {name: status.violationTime / 1e9 for name, status in found.items() if status is not None}

    def other_processes(self) -> int | None:
        """How many processes but this one compute on it, while this one does; some containers hide the others.

        They are counted and not told apart by their ids: a container may have ids of its own.
        """
        running = self.ask("nvmlDeviceGetComputeRunningProcesses")
        return None if running is None else max(0, len(running) - 1)

    def microjoules(self) -> int | None:
        """Energy since the driver was loaded; None before Volta."""
        millijoules = self.ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else 1000 * int(millijoules)


def open_gpu(device: torch.device, load: Callable[[], Any] | None = None) -> Gpu | None:
    """The GPU that torch computes on; None on another device, or without NVML. `load` makes the module (tests)."""
    if device.type != "cuda":
        return None
    try:
        nvml = load() if load else _load()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        return Gpu(nvml, _handle(nvml, device))
    except nvml.NVMLError:  # no driver library, or a device that NVML does not list
        return None


def _load() -> Any:
    import pynvml

    return pynvml


def _handle(nvml: Any, device: torch.device) -> Any:
    """By UUID: NVML counts all GPUs, torch those that CUDA_VISIBLE_DEVICES shows."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _thousandths(value: Any) -> float | None:
    return None if value is None else value / 1000


def _switch(value: Any) -> bool | None:
    return None if value is None else bool(value)
