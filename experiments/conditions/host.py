"""Sensors of the machine: each reads files of Linux below a root and returns what is there, {} for nothing.

Totals (of waits, thefts, throttling) grow since the machine started: the difference of two readings says what happened
in between. A file that is absent, as most are in a virtual machine or a container, is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.conditions.files import ROOT, children, number, numbers, own_cores, text, told

Reading = dict[str, Any]
Sensor = Callable[[Path, Sequence[int]], Reading]  # (root, cores of this process)

HERTZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # ticks a second of /proc/stat
CHIPS = ("coretemp", "k10temp", "zenpower")  # hwmon devices that are processors; others, as disks, are slow to read
# Counts of thermal throttling, and the file of a logical core's topology that is the same for all who share one.
THERMAL = {"core_throttle": "thread_siblings_list", "package_throttle": "physical_package_id"}


def load(root: Path, cores: Sequence[int]) -> Reading:
    """Load averages of 1, 5 and 15 minutes; tasks that run or wait for a core now."""
    words = (text(root / "proc/loadavg") or "").split()
    try:
        return {"averages": [float(word) for word in words[:3]], "runnable": int(words[3].partition("/")[0])}
    except (IndexError, ValueError):  # not Linux
        return {"averages": list(os.getloadavg())} if root == ROOT and hasattr(os, "getloadavg") else {}


def pressure(root: Path, cores: Sequence[int]) -> Reading:
    """Share of the last 10 s, and seconds since the start, in which some (all: full) tasks waited for a resource."""
    found = {}
    for name in ("cpu", "memory", "io"):
        for line in (text(root / "proc/pressure" / name) or "").splitlines():
            kind, *pairs = line.split()
            values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if "avg10" in values and "total" in values:
                share = round(float(values["avg10"]) / 100, 4)
                found[f"{name}_{kind}"] = {"share_10s": share, "seconds": int(values["total"]) / 1e6}
    return found


def cores_used(root: Path, cores: Sequence[int]) -> Reading:
    """Seconds since the start in which our cores worked, and in which the host of a virtual machine took them away."""
    lines = [line.split() for line in (text(root / "proc/stat") or "").splitlines()]
    wanted = {f"cpu{core}" for core in cores}
    ours = [[int(word) for word in line[1:9]] for line in lines if line and line[0] in wanted and len(line) >= 9]
    if not ours:
        return {}
    user, nice, system, _idle, _waiting, irq, softirq, steal = (sum(column) for column in zip(*ours, strict=True))
    busy = user + nice + system + irq + softirq
    return {"count": len(ours), "busy_seconds": busy / HERTZ, "stolen_seconds": steal / HERTZ}


def frequency(root: Path, cores: Sequence[int]) -> Reading:
    """Governors, and the lowest and highest frequency of our cores (MHz); whether they may go above their base."""
    system = root / "sys/devices/system/cpu"
    folders = [system / f"cpu{core}" / "cpufreq" for core in cores]
    now = numbers(folder / "scaling_cur_freq" for folder in folders)
    governors = {found for folder in folders if (found := text(folder / "scaling_governor")) is not None}
    limits = numbers(folder / "scaling_max_freq" for folder in folders)
    no_turbo, boost = number(system / "intel_pstate/no_turbo"), number(system / "cpufreq/boost")
    return told(
        {
            "governors": sorted(governors),
            "lowest_mhz": min(now) / 1000 if now else None,
            "highest_mhz": max(now) / 1000 if now else None,
            "limit_mhz": max(limits) / 1000 if limits else None,
            "boost": bool(boost) if boost is not None else None if no_turbo is None else not no_turbo,
        }
    )


def throttling(root: Path, cores: Sequence[int]) -> Reading:
    """How often our cores and their packages were slowed because they were hot, since the start.

    Every logical core counts what happens to its core and to its package: each of those is told once.
    """
    found = {}
    for name, shared in THERMAL.items():
        counts: dict[str, int] = {}
        for folder in (root / f"sys/devices/system/cpu/cpu{core}" for core in cores):
            if (count := number(folder / "thermal_throttle" / f"{name}_count")) is not None:
                whose = text(folder / "topology" / shared) or folder.name
                counts[whose] = max(count, counts.get(whose, 0))
        if counts:
            found[name] = sum(counts.values())
    return found


def temperatures(root: Path, cores: Sequence[int]) -> Reading:
    """Degrees Celsius of thermal zones and of the processor's own sensors, by name; the highest of one name."""
    found: dict[str, float] = {}
    places = [(zone / "type", zone / "temp") for zone in children(root / "sys/class/thermal", "thermal_zone*")]
    places += [(chip / "name", chip / "temp1_input") for chip in children(root / "sys/class/hwmon", "hwmon*")]
    for who, where in places:
        name = text(who)
        if name and (who.name == "type" or name in CHIPS) and (degrees := number(where)) is not None:
            found[name] = max(degrees / 1000, found.get(name, -273.15))
    return found


def memory(root: Path, cores: Sequence[int]) -> Reading:
    """Bytes that programs could still take, and bytes that were moved out to disk."""
    lines = (line.split() for line in (text(root / "proc/meminfo") or "").splitlines())
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    swapped = kilobytes.get("SwapTotal", 0) - kilobytes.get("SwapFree", 0)
    available = kilobytes.get("MemAvailable")
    return {} if available is None else {"available_bytes": 1024 * available, "swapped_bytes": 1024 * swapped}


def uptime(root: Path, cores: Sequence[int]) -> Reading:
    """Seconds since the machine started: what the other totals are a share of."""
    words = (text(root / "proc/uptime") or "").split()
    return {"seconds": float(words[0])} if words else {}


SENSORS: dict[str, Sensor] = {
    "uptime": uptime,
    "load": load,
    "pressure": pressure,
    "cores": cores_used,
    "frequency": frequency,
    "throttling": throttling,
    "temperatures": temperatures,
    "memory": memory,
}


def read_host(root: Path = ROOT, cores: Sequence[int] | None = None) -> dict[str, Reading]:
    """What the sensors say, without those that have nothing to say or whose files are in another form."""
    found, ours = {}, own_cores() if cores is None else cores
    for name, sensor in SENSORS.items():
        try:
            found[name] = sensor(root, ours)
        except ValueError:
            continue
    return told(found)
