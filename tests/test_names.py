from __future__ import annotations

import pytest

from calculator.errors import UnknownName
from calculator.names import key, lookup, nearest


def test_case_spaces_and_hyphens_do_not_matter():
    assert key("RTX 4090") == key("rtx-4090") == key("Rtx_4090")


def test_a_typo_gets_the_nearest_names_first():
    assert nearest("lama-3.2-1b", ["qwen2.5-7b", "llama-3.2-1b"])[0] == "llama-3.2-1b"


def test_an_unknown_name_says_what_to_type():
    with pytest.raises(UnknownName, match=r"model 'gpt5' is not known; try: .*vram models"):
        lookup("gpt5", {}, kind="model", known=["gpt-5"], listing="vram models")
