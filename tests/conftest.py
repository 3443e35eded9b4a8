from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from calculator.cli import main

os.environ["VRAM_MODELS"] = "/nonexistent"  # whoever runs the tests may have models of their own
sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("default", deadline=None, max_examples=60)
settings.load_profile("default")


@pytest.fixture
def run(capsys):
    """Run a command line: exit status, stdout, stderr."""

    def go(*arguments: str):
        status = 0
        try:
            main(list(arguments))
        except SystemExit as e:
            status = int(e.code or 0)
        return status, *capsys.readouterr()

    return go
