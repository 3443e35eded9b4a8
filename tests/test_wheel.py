"""The wheel that people install: built, put into an empty environment, run from another folder."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "calculator/data/models/llama-3.2-1b.json" in names
    assert "calculator/data/gpus/nvidia.json" in names
    assert all(n.startswith(("calculator/", "vram_calculator-")) for n in names)
    assert not any("__pycache__" in n or n.endswith(".pyc") for n in names)


def test_the_installed_wheel_estimates_from_another_folder(wheel, tmp_path):
    """Only its own dependencies beside it: those come from this environment's files, the package from the wheel."""
    site = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(site)], check=True)
    python = site / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run(
        [str(site / "bin" / "vram"), "estimate", "llama-3.2-1b", "--json"], cwd=elsewhere, check=True, capture_output=True, text=True
    )
    document = json.loads(run.stdout)
    assert document["model"] == {"id": "llama-3.2-1b", "parameters": 1_235_814_400}
    assert run.stderr == ""
    where = subprocess.run([str(python), "-c", "import calculator; print(calculator.__file__)"], cwd=elsewhere, check=True, capture_output=True, text=True)
    assert str(site) in where.stdout
