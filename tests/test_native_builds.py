"""The suite with other builds of the CPU kernels: each instruction set forced, none compiled, and under sanitizers."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from unit.kernels.cpu_backends import ISA_VARIABLE, ISAS, needs_native
from unit.kernels.native_choice import CHOICE_VARIABLE

ROOT = Path(__file__).parents[1]
PLUGIN = ("-p", "unit.kernels.native_choice")
# Kernels, invariance, and generation from a folder to text.
SUITE = ("tests/unit/kernels", "tests/invariance", "tests/unit/apis", "tests/unit/cli/test_generate.py")
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last so that the first finds its exceptions


def run_suite(*arguments: str, timeout_s: int, **environment: str) -> str:
    """The end of what pytest prints; fails unless all tests pass."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
    variables = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout_s
    )
    output = done.stdout[-6000:] + done.stderr[-6000:]
    assert done.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("isa", ISAS)
def test_the_suite_passes_with_each_instruction_set_forced(isa: str) -> None:
    assert " passed" in run_suite(*SUITE, timeout_s=1200, **{ISA_VARIABLE: isa})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_suite_passes_without_compiled_kernels() -> None:
    output = run_suite(*PLUGIN, *SUITE, timeout_s=600, **{CHOICE_VARIABLE: "absent"})
    assert " passed" in output
    assert " skipped" in output


GENERATE = """
import sys
sys.modules["kilotron.kernels.cpu._native"] = None
from kilotron.__main__ import main
main()
"""


def test_without_compiled_kernels_one_warning_says_what_runs_instead() -> None:
    arguments = ["generate", "-p", "Once upon a time", "--max-tokens", "4", "--temperature", "0"]
    command = [sys.executable, "-c", GENERATE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout
    assert done.stderr.count("running on plain torch") == 1
    assert "install g++" in done.stderr


@pytest.fixture(scope="module")
def sanitized_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension with AddressSanitizer and UndefinedBehaviorSanitizer; a finding ends the process."""
    folder = tmp_path_factory.mktemp("sanitized")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    settings = {"build-dir": str(folder / "build"), "cmake.define.KILOTRON_SANITIZE": "ON"}
    for name, value in settings.items():
        build.append(f"--config-settings={name}={value}")
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if "/_native." in name]
        return Path(archive.extract(name, folder))


def find_runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
@needs_native
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc, so nothing can be compiled with sanitizers")
def test_sanitizers_find_nothing_in_the_kernels(sanitized_module: Path) -> None:
    environment = {
        CHOICE_VARIABLE: str(sanitized_module),
        "LD_PRELOAD": " ".join(map(find_runtime, RUNTIMES)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    files = sorted(map(str, (ROOT / "tests/unit/kernels").glob("test_cpu_*.py")))
    output = run_suite(*PLUGIN, "--capture=no", "--timeout=600", *files, timeout_s=1100, **environment)
    assert " passed" in output
