"""The documents are true: their commands run, their quotations are what the program prints."""

from __future__ import annotations

import re

import pytest
from written_docs import CLI, README, ROOT, cli_page, commands, readme, run

from calculator.architectures import ARCHITECTURES
from calculator.catalog import model_ids
from calculator.engines.sglang.families import FAMILIES as SGLANG
from calculator.engines.vllm.families import FAMILIES as VLLM

SPARSE = ("deepseek_v32", "glm_moe_dsa")  # whose activations aren't modelled


@pytest.mark.parametrize("command", commands(README.read_text()))
def test_the_readmes_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(command)


def test_the_readme_quotes_what_the_program_prints():
    """Output and error table; `python tests/written_docs.py --write` renews them."""
    assert readme() == README.read_text()


def test_cli_page_has_every_command():
    assert cli_page() == CLI.read_text()


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_counts_models_model_types_and_what_the_servers_run():
    text = README.read_text()
    bounds = sum(bool(family.bound) for family in SGLANG.values())
    assert f"`vram models`: {len(model_ids())}," in text
    assert f"{len(ARCHITECTURES)} model types have inventories" in text
    assert f"{len(VLLM) - len(SPARSE)} in vLLM" in text
    assert f"{len(SGLANG) - bounds} in SGLang, where {('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')[bounds]} more are lower bounds" in text
