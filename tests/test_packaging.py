"""What a person installs: the declared needs stay light, and the wheel holds what the package reads at run time."""

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


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=110)

    (wheel,) = tmp_path.glob("kilotron-*.whl")
    package = ROOT / "src"
    files = {path.relative_to(package).as_posix() for path in (package / "kilotron").rglob("*") if path.is_file()}
    wanted = {file for file in files if "__pycache__" not in file}

    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()
