"""The command `vram`, to which the other modules add theirs."""

from __future__ import annotations

import click

from calculator import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vram")
def vram() -> None:
    """How much memory a language model needs, which GPU to take, and why: every number with its formula and source."""
