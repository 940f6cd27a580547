"""Sensors on fake trees and a fake NVML: what is there is read, what is absent is left out, nothing raises."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.conditions.disturbed import between, disturbances
from experiments.conditions.gpu import Gpu, open_gpu
from experiments.conditions.host import read_host
from experiments.conditions.meter import Counter, PassMeter, energy_counters, open_meter, rapl_counters
from experiments.conditions.reading import read_conditions
from experiments.identity import provenance
from experiments.measure import Bench, Prompt, Stopwatch
from experiments.metrics import summarize
from experiments.records import PER_REPEAT, Row, is_reading
from experiments.store import select
from viasd.decode import Generation
from viasd.sampling import Sampling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CORE = "sys/devices/system/cpu/cpu"
TREE = {
    "proc/uptime": "120.5 400.0\n",
    "proc/loadavg": "1.50 0.78 0.46 4/129 7320\n",
    "proc/pressure/cpu": "some avg10=9.50 avg60=2.90 avg300=1.31 total=2500000\nfull avg10=0.00 avg60=0.00 total=0\n",
    "proc/pressure/memory": "some avg10=0.00 total=7\n",
    "proc/stat": "cpu 1 2 3 4 5 6 7 8 0 0\ncpu0 100 0 50 900 10 5 45 20 0 0\ncpu1 900 0 0 0 0 0 0 0 0 0\nctxt 5\n",
    "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 40 kB\nSwapTotal: 10 kB\nSwapFree: 7 kB\n",
    f"{CORE}0/cpufreq/scaling_cur_freq": "1800000\n",
    f"{CORE}2/cpufreq/scaling_cur_freq": "3100000\n",
    f"{CORE}0/cpufreq/scaling_max_freq": "3500000\n",
    f"{CORE}0/cpufreq/scaling_governor": "powersave\n",
    f"{CORE}2/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
    f"{CORE}0/thermal_throttle/core_throttle_count": "3\n",
    f"{CORE}2/thermal_throttle/core_throttle_count": "4\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "51000\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "62500\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_input": "99000\n",
    "sys/class/hwmon/hwmon1/name": "k10temp\n",
    "sys/class/hwmon/hwmon1/temp1_input": "45000\n",
}


def plant(root: Path, tree: Mapping[str, str]) -> Path:
    """The tree's files below a root."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_the_host_is_read_from_its_files(tmp_path: Path) -> None:
    found = read_host(plant(tmp_path, TREE), cores=[0, 2])
    assert found == {
        "uptime": {"seconds": 120.5},
        "load": {"averages": [1.5, 0.78, 0.46], "runnable": 4},
        "pressure": {
            "cpu_some": {"share_10s": 0.095, "seconds": 2.5},
            "cpu_full": {"share_10s": 0.0, "seconds": 0.0},
            "memory_some": {"share_10s": 0.0, "seconds": 7e-6},
        },
        "cores": {"count": 1, "busy_seconds": 2.0, "stolen_seconds": 0.2},
        "frequency": {
            "governors": ["performance", "powersave"], "lowest_mhz": 1800.0, "highest_mhz": 3100.0,
            "limit_mhz": 3500.0, "boost": False,
        },
        "throttling": {"core_throttle": 7},
        "temperatures": {"x86_pkg_temp": 62.5, "k10temp": 45.0},
        "memory": {"available_bytes": 40960, "swapped_bytes": 3072},
    }  # fmt: skip


def test_cores_and_packages_that_throttled_are_counted_once(tmp_path: Path) -> None:
    """Two packages of two cores with two threads each; the threads of one core may differ by the last event."""
    tree: dict[str, str] = {}
    for cpu in range(8):
        core, package = cpu % 4, cpu % 4 // 2
        tree[f"{CORE}{cpu}/topology/physical_package_id"] = f"{package}\n"
        tree[f"{CORE}{cpu}/topology/thread_siblings_list"] = f"{core},{core + 4}\n"
        tree[f"{CORE}{cpu}/thermal_throttle/core_throttle_count"] = f"{core + (cpu == 7)}\n"
        tree[f"{CORE}{cpu}/thermal_throttle/package_throttle_count"] = f"{10 * (package + 1)}\n"
    plant(tmp_path, tree)
    told = read_host(tmp_path, cores=range(8))["throttling"]
    assert told == {"core_throttle": 0 + 1 + 2 + 4, "package_throttle": 10 + 20}
    assert read_host(tmp_path, cores=[0, 1, 5])["throttling"] == {"core_throttle": 1, "package_throttle": 10}


def test_what_is_absent_or_strange_is_left_out(tmp_path: Path) -> None:
    assert read_host(tmp_path, cores=[0]) == {} and read_host(tmp_path / "nowhere", cores=[]) == {}
    strange = dict.fromkeys(TREE, "?\n")
    assert read_host(plant(tmp_path, strange), cores=[0, 2]) == {"frequency": {"governors": ["?"]}}
    (tmp_path / "proc/loadavg").unlink()
    (tmp_path / "proc/loadavg").mkdir()
    assert "load" not in read_host(tmp_path, cores=[0])


def test_this_machine_is_read_fast_and_without_an_error() -> None:
    read_conditions(CPU)
    seconds = []
    for _ in range(5):
        start = perf_counter()
        found = read_conditions(CPU)
        seconds.append(perf_counter() - start)
    assert min(seconds) < 0.02 and "gpu" not in found
    assert provenance(CPU)["conditions"]["before"].keys() == found.keys()


class NVMLError(Exception):
    """What NVML answers where it has no answer."""


def nvml(**answers: Any) -> SimpleNamespace:
    """A module whose queries about the device answer so; others are not supported."""

    def refuse(*_: Any) -> Any:
        raise NVMLError

    queries = {
        "nvmlDeviceGetClockInfo": lambda _, kind: (1000, 1100, 1200)[kind],
        "nvmlDeviceGetMaxClockInfo": refuse,
        "nvmlDeviceGetPowerUsage": lambda _: 250_500,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetTemperature": lambda _, sensor: 61,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x1 | 0x4 | 0x40,
        "nvmlDeviceGetViolationStatus": lambda _, limit: SimpleNamespace(violationTime=limit * 1_500_000_000),
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=1), SimpleNamespace(pid=2)],
        "nvmlDeviceGetPersistenceMode": lambda _: 1,
        "nvmlDeviceGetCurrentEccMode": lambda _: 0,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: 5000,
    }
    found = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid, "NVMLError": NVMLError}
    return SimpleNamespace(**{**found, **queries, **answers})


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that CUDA shows."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="ab-12"))


@pytest.mark.usefixtures("card")
def test_a_gpu_is_read_by_its_uuid() -> None:
    gpu = open_gpu(CUDA, nvml)
    assert gpu is not None and gpu.handle == "GPU-ab-12" and gpu.microjoules() == 5_000_000
    assert gpu.read() == {
        "clocks_mhz": {"graphics": 1000, "sm": 1100, "memory": 1200},
        "watts": 250.5,
        "limit_watts": 700.0,
        "celsius": 61,
        "reasons": ["idle", "power_cap", "hardware_thermal_slowdown"],
        "slowed_seconds": {
            "power": 0.0, "thermal": 1.5, "sync_boost": 3.0, "board": 4.5, "low_utilization": 6.0, "reliability": 7.5,
        },
        "other_processes": 1,
        "persistence": True,
        "ecc": False,
    }  # fmt: skip


@pytest.mark.usefixtures("card")
def test_a_gpu_that_tells_nothing_has_empty_readings() -> None:
    silent = Gpu(SimpleNamespace(NVMLError=NVMLError), "GPU-ab-12")
    assert silent.read() == {} and silent.microjoules() is None

    def fail(*_: Any) -> None:
        raise NVMLError

    def missing() -> None:
        raise ImportError

    assert open_gpu(CPU, nvml) is None and open_gpu(CUDA, missing) is None
    assert open_gpu(CUDA, lambda: nvml(nvmlInit=fail)) is None
    assert open_gpu(CUDA, lambda: nvml(nvmlDeviceGetHandleByUUID=fail)) is None


def test_an_older_package_names_the_reasons_otherwise() -> None:
    module = nvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x80)
    del module.nvmlDeviceGetCurrentClocksEventReasons
    assert Gpu(module, None).reasons() == ["power_brake"]


# --- energy -------------------------------------------------------------------------------------------------------


def package(root: Path, place: str, name: str, energy: int | None, span: int = 1000) -> None:
    folder = root / "sys/class/powercap" / f"intel-rapl:{place}"
    plant(folder, {"name": f"{name}\n", "max_energy_range_uj": f"{span}\n"})
    if energy is not None:
        plant(folder, {"energy_uj": f"{energy}\n"})


def test_packages_are_summed_and_counters_wrap(tmp_path: Path) -> None:
    package(tmp_path, "0", "package-0", 900, span=1000)
    package(tmp_path, "1", "package-1", 100, span=1000)
    package(tmp_path, "0:0", "core", 50)
    package(tmp_path, "2", "psys", 7000)
    meter = open_meter(CPU, tmp_path)
    assert [counter.name for counter in rapl_counters(tmp_path)] == ["package-0", "package-1"]
    before = meter.read()
    package(tmp_path, "0", "package-0", 50)  # 100 to the end, 50 after it
    package(tmp_path, "1", "package-1", 400)
    assert meter.joules(before, meter.read()) == [pytest.approx((150 + 300) / 1e6)]
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert meter.joules(before, meter.read()) == []  # a part would look like a saving


def test_a_package_that_may_not_be_read_leaves_no_energy(tmp_path: Path) -> None:
    package(tmp_path, "0", "package-0", 900)
    package(tmp_path, "1", "package-1", None)
    assert rapl_counters(tmp_path) == [] == rapl_counters(tmp_path / "nowhere")
    meter = open_meter(CPU, tmp_path)
    assert meter.joules(meter.read(), meter.read()) == []


@pytest.mark.usefixtures("card")
def test_energy_of_a_gpu_run_holds_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "0", "package-0", 900)
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert [one.name for one in energy_counters(CUDA, tmp_path)] == ["package-0", "gpu"]
    assert [one.name for one in energy_counters(CPU, tmp_path)] == ["package-0"]
    assert read_conditions(CUDA, tmp_path)["energy_counters"] == ["package-0", "gpu"]
    module = nvml()
    del module.nvmlDeviceGetTotalEnergyConsumption
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert energy_counters(CUDA, tmp_path) == []
    assert Counter("gpu", lambda: None).joules(None, 5) is None


def test_energy_is_a_ratio_of_totals_and_absent_where_a_row_has_none() -> None:
    def row(example: str, arm: str, tokens: int, *joules: float) -> Row:
        return Row(example, arm, int(example), new_tokens=tokens, decode_seconds=[1.0], joules=list(joules))

    rows = [row("0", "vanilla", 10, 20.0, 40.0), row("1", "vanilla", 30, 30.0)]
    rows += [row("0", "sd", 10, 10.0), row("1", "sd", 20, 5.0)]
    told = summarize(rows, ["vanilla", "sd"], temperature=0.0)
    assert told["vanilla"]["energy_per_token"]["value"] == pytest.approx(60 / 40)  # type: ignore[index]
    assert told["sd"]["energy_ratio"]["value"] == pytest.approx((15 / 30) / (60 / 40))  # type: ignore[index]
    assert told["sd"]["energy_ratio"]["low"] < told["sd"]["energy_ratio"]["high"]  # type: ignore[index]
    rows[-1].joules = []
    told = summarize(rows, ["vanilla", "sd"], temperature=0.0)
    assert "energy_per_token" in told["vanilla"] and not {"energy_per_token", "energy_ratio"} & told["sd"].keys()


# --- waits --------------------------------------------------------------------------------------------------------


def threads(root: Path, **milliseconds: tuple[int, int]) -> None:
    """Threads that ran and waited so long."""
    for name, (ran, waited) in milliseconds.items():
        plant(root, {f"proc/self/task/{name}/schedstat": f"{ran * 1_000_000} {waited * 1_000_000} 5\n"})


def test_the_longest_wait_of_a_computing_thread_counts(tmp_path: Path) -> None:
    meter = PassMeter(root=tmp_path)
    assert meter.waited_seconds(meter.read(), meter.read()) == []  # no such files
    threads(tmp_path, a=(0, 0))
    assert meter.waited_seconds(meter.read(), meter.read()) == []  # a kernel that does not count
    threads(tmp_path, a=(100, 7), b=(100, 50), c=(0, 0))
    before = meter.read()
    threads(tmp_path, a=(1100, 10), b=(900, 90), c=(20, 500), new=(950, 30))
    assert meter.waited_seconds(before, meter.read()) == [pytest.approx(0.04)]  # c hardly computes


def test_a_timed_pass_stores_what_its_edges_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The meter reads before the clock starts and after it has stopped, once for each repeat."""
    log: list[str] = []
    enter, leave = Stopwatch.__enter__, Stopwatch.__exit__
    monkeypatch.setattr(Stopwatch, "__enter__", lambda self: (log.append("start"), enter(self))[1])
    monkeypatch.setattr(Stopwatch, "__exit__", lambda self, *told: (leave(self, *told), log.append("stop"))[0])
    package(tmp_path, "0", "package-0", 100, span=10**6)
    threads(tmp_path, main=(0, 0))
    bench: Any = object.__new__(Bench)
    meter = open_meter(CPU, tmp_path)
    bench.meter = SimpleNamespace(
        read=lambda: (log.append("read"), meter.read())[1], joules=meter.joules, waited_seconds=meter.waited_seconds
    )
    bench.engine, bench.decode, bench.seed = SimpleNamespace(device=CPU), Sampling(), 0

    def generate(*_: Any, watch: Any) -> Generation:
        watch("prefilled")
        package(tmp_path, "0", "package-0", 100 + 50 * len(log), span=10**6)
        threads(tmp_path, main=(50 * len(log), 3 * len(log)))
        return Generation([1, 2], "length", rounds=[], calls={}, fed={}, laws=None)

    bench.arms = {"sd": SimpleNamespace(generate=generate)}
    row = Row("x", "sd", 0)
    prompt = Prompt(0, SimpleNamespace(example_id="x"), [1])  # type: ignore[arg-type]
    for _ in range(2):
        bench._time(row, prompt)
    assert log == ["read", "start", "stop", "read"] * 2
    assert row.joules == pytest.approx([100e-6, 200e-6]) and row.waited_seconds == pytest.approx([0.006, 0.012])
    assert len(row.decode_seconds) == 2


def test_readings_are_told_from_results_in_one_place() -> None:
    row = Row("x", "sd", 0, new_tokens=3, **{name: [1.0] for name in PER_REPEAT})
    assert all(map(is_reading, PER_REPEAT)) and is_reading("reader_seconds") and not is_reading("token_ids")
    (untimed,) = select([row], {"x"}, set())
    assert not any(getattr(untimed, name) for name in PER_REPEAT) and untimed.new_tokens == 3


# --- what was disturbed -------------------------------------------------------------------------------------------


def timed(arm: str, index: int, waited: list[float]) -> Row:
    return Row(f"e{index}", arm, index, decode_seconds=[0.9] * 2, prefill_seconds=[0.1] * 2, waited_seconds=waited)


def test_generations_that_waited_are_counted() -> None:
    rows = [timed("vanilla", 0, [0.021, 0.02]), timed("sd", 0, [0.0, 0.5]), timed("sd", 1, [0.0, 0.0])]
    assert disturbances("qa", rows, []) == [
        "task qa: 2 of 6 timed generations waited for a core for more than 2% of their seconds "
        "(of all seconds: 12.5% in sd, the most, 2.1% in vanilla, the least)"
    ]
    assert disturbances("qa", rows[2:], []) == [] == disturbances("qa", [timed("sd", 0, [])], [{}])
    assert disturbances("qa", rows[:1], [])[0].endswith("(of all seconds: 2.1% in vanilla)")


def test_what_happened_to_the_machine_is_told_once() -> None:
    before: dict[str, Any] = {
        "uptime": {"seconds": 100.0},
        "cores": {"busy_seconds": 50.0, "stolen_seconds": 1.0},
        "pressure": {"memory_full": {"seconds": 0.0}},
        "throttling": {"core_throttle": 5, "package_throttle": 5},
        "gpu": {"reasons": ["idle"], "slowed_seconds": {"power": 0.0, "thermal": 0.0, "low_utilization": 1.0}},
    }
    after: dict[str, Any] = {
        "uptime": {"seconds": 200.0},
        "cores": {"busy_seconds": 95.0, "stolen_seconds": 6.0},
        "pressure": {"memory_full": {"seconds": 3.0}},
        "throttling": {"core_throttle": 5, "package_throttle": 9},
        "gpu": {
            "reasons": ["idle", "thermal_slowdown"], "other_processes": 2,
            "slowed_seconds": {"power": 1.9, "thermal": 2.1, "low_utilization": 99.0},
        },
    }  # fmt: skip
    told = [
        "the host of this virtual machine took 10.0% of the time that the cores wanted",
        "all work stood still for lack of memory, 3.0 s",
        "the processor slowed down 4 times because it was hot",
        "the clocks of the GPU were held down (thermal_slowdown, thermal limit for 2.1 s)",
        "other processes computed on the GPU (2)",
    ]
    assert list(between(before, after)) == told
    starts = [{"conditions": {"before": before, "after": after}}] * 2 + [{"conditions": {"before": after}}, {"load": 1}]
    assert disturbances("qa", [], starts) == [f"task qa: {text}" for text in told]
    assert list(between(before, before)) == [] == list(between(before, {})) == list(between({}, after))
    assert list(between({"gpu": {}}, {"gpu": {}})) == []
