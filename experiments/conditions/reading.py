"""One reading of all sensors, as it is stored before and after a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.conditions.files import ROOT, told
from experiments.conditions.gpu import open_gpu
from experiments.conditions.host import read_host
from experiments.conditions.meter import energy_counters


def read_conditions(device: torch.device, root: Path = ROOT) -> dict[str, Any]:
    """What the machine's sensors say now, by sensor, the GPU's if it computes, and what has energy counters."""
    gpu = open_gpu(device)
    energy = [counter.name for counter in energy_counters(device, root)]
    return told({**read_host(root), "gpu": gpu.read() if gpu is not None else None, "energy_counters": energy})
