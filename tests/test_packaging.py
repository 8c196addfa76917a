"""What a person installs: the declared needs stay light, and the wheel holds what the package reads at run time."""

import os
import platform
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_building_never_needs_torch() -> None:
    assert not [need for need in PYPROJECT["build-system"]["requires"] if "torch" in need]


def test_torch_keeps_its_upper_bound() -> None:
    (torch,) = [need for need in PYPROJECT["project"]["dependencies"] if need.startswith("torch")]

    assert "<" in torch


def build_wheel(folder: Path, **environment: str) -> set[str]:
    """The names of what is in it."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    build.append(f"--config-settings=build-dir={folder / 'build'}")
    subprocess.run(build, check=True, timeout=550, env=os.environ | environment)
    (wheel,) = folder.glob("kilotron-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_holds_every_file_of_the_package_and_the_kernels_compiled(tmp_path: Path) -> None:
    names = build_wheel(tmp_path)
    package = ROOT / "src"
    files = {path.relative_to(package).as_posix() for path in (package / "kilotron").rglob("*") if path.is_file()}
    wanted = {file for file in files if "__pycache__" not in file and "/native/" not in file}

    assert wanted - names == set()
    assert not [name for name in names if "/native/" in name]
    assert len([name for name in names if "/_native." in name]) == (platform.machine() == "x86_64")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_compiler_the_wheel_is_built_all_the_same(tmp_path: Path) -> None:
    names = build_wheel(tmp_path, CXX="/no/such/compiler")

    assert "kilotron/kernels/cpu/backend.py" in names
    assert not [name for name in names if "/_native." in name]


def test_an_engine_in_ones_own_process_needs_no_package_of_the_server() -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(["zmq", "starlette", "uvicorn", "prometheus_client", "cyclopts"])
from kilotron import MegatronLLM
with MegatronLLM(kernels="reference", num_threads=1) as llm:
    print(len(llm.generate("Once upon a time")[0].generated_tokens) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
