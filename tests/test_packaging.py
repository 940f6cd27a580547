"""What a clone promises: one version, light imports, layers, pinned sets that fit, no trace of a machine."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("viasd", "baselines", "experiments")
MAY_IMPORT = {"viasd": {"viasd"}, "baselines": {"baselines", "viasd"}, "experiments": set(PACKAGES)}
CLOCK_MODULES = {"time", "timeit"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute name of every module that is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints" / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "nothing but name==version"
    return {canonicalize_name(key): version for key, _, version in (line.partition("==") for line in lines)}


def test_version_is_stated_once_and_the_same() -> None:
    import viasd

    assert viasd.__version__ == PYPROJECT["project"]["version"]
    assert f"\nversion: {viasd.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{viasd.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_light() -> None:
    # The fastest of three: the promise is about the package, not about what else the machine does.
    code = (
        "import sys, time; start = time.perf_counter(); import viasd; seconds = time.perf_counter() - start;"
        "print(seconds, *[name for name in ('transformers', 'datasets', 'wandb') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    outputs = [subprocess.check_output(command, cwd=ROOT, text=True).split() for _ in range(3)]
    assert all(len(output) == 1 for output in outputs), f"imported with viasd: {outputs[0][1:]}"
    assert min(float(output[0]) for output in outputs) < 1


@pytest.mark.parametrize("package", PACKAGES)
def test_layers(package: str) -> None:
    for path in sources(package):
        where = path.relative_to(ROOT)
        for module in imported_modules(ast.parse(path.read_text())):
            top = module.split(".")[0]
            assert top not in PACKAGES or top in MAY_IMPORT[package], f"{where} imports {module}"
            assert top not in {"scripts", "tests"}, f"{where} imports {module}"
            assert package == "experiments" or top not in CLOCK_MODULES, f"{where} reads a clock ({module})"


@pytest.mark.parametrize("layer", ["viasd", "baselines"])
def test_lint_holds_the_layers(layer: str) -> None:
    ruff = shutil.which("ruff", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if ruff is None:
        pytest.skip("ruff is not installed")
    forbidden = ["import experiments.run", "import time", "from datetime import datetime\ndatetime.now()"]
    if layer == "viasd":
        forbidden.append("from baselines import rules")
    for source in forbidden:
        command = [ruff, "check", "--no-cache", "--select=TID251", f"--stdin-filename={layer}/probe.py", "-"]
        result = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
        assert result.returncode == 1 and "TID251" in result.stdout, source


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_a_package(package: str) -> None:
    missing = [path for path in sources(package) if not (path.parent / "__init__.py").exists()]
    assert not missing, "setuptools leaves out folders without __init__.py"


@pytest.mark.parametrize("name", ["newest.txt", "oldest.txt"])
def test_pinned_sets_fit_the_requirements(name: str) -> None:
    pinned = pins(name)
    project = PYPROJECT["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert version in requirement.specifier


def test_pinned_sets_are_the_promised_ones() -> None:
    newest, oldest = pins("newest.txt"), pins("oldest.txt")
    assert (newest["torch"], newest["transformers"]) == ("2.13.0", "5.23.0")
    assert oldest["transformers"] == "5.17.0"
    assert int(oldest["huggingface-hub"].split(".")[0]) < 2


def test_makefile_accepts_the_same_pythons() -> None:
    accepted = SpecifierSet(PYPROJECT["project"]["requires-python"])
    bounds = re.search(
        r"not \((\d), (\d+)\) <= sys.version_info\[:2\] <= \((\d), (\d+)\)", (ROOT / "Makefile").read_text()
    )
    assert bounds is not None
    low, high = int(bounds[2]), int(bounds[4])
    assert [minor for minor in range(20) if f"3.{minor}.0" in accepted] == list(range(low, high + 1))


def clone_files() -> list[Path]:
    """The files that a clone has, or will have once they are committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    # Put together here, so that this file does not name them either.
    patterns = ["/" + "work/", "/" + "root/", "/" + "home/", "pypi" + ".org", "python" + "hosted"]
    found = []
    for path in clone_files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        text = data.decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {pattern}" for pattern in patterns if pattern in text]
    assert not found, found


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", ".ci/run"])
def test_file_of_a_complete_clone(name: str) -> None:
    assert (ROOT / name).read_text().strip()
