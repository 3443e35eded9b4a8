from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ["VRAM_MODELS"] = "/nonexistent"  # whoever runs the tests may have models of their own
sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("default", deadline=None, max_examples=60)
settings.load_profile("default")
