"""What the documents quote from the program: README's output and tables, docs/cli.md's help texts.

`python tests/written_docs.py --write` regenerates them; tests hold the documents to the program.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from click.testing import CliRunner

from calculator.checks.compare import compare_all
from calculator.checks.validate import validate
from calculator.checks.write import with_tables
from calculator.cli import vram

ROOT = Path(__file__).parent.parent
README, CLI = ROOT / "README.md", ROOT / "docs" / "cli.md"
COMMAND = re.compile(r"^\$ (vram .*)$", re.MULTILINE)
OUTPUT = re.compile(r"(<!-- output of: (vram [^\n]*) -->\n)(.*?)(<!-- end of output -->)", re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines that a document shows."""
    return COMMAND.findall(text)


def run(command: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(vram, shlex.split(command)[1:])
    assert result.exit_code == 0, (command, result.output)
    return result.output


def readme() -> str:
    """The README with its quotations made new."""
    text = OUTPUT.sub(lambda m: f"{m[1]}```text\n{run(m[2])}```\n{m[4]}", README.read_text())
    return with_tables(text, validate(), compare_all()[0])


def cli_page() -> str:
    """docs/cli.md: every command's help."""
    out = [
        "# Command line\n\nWritten by `python tests/written_docs.py --write`; a test holds it to the program. "
        "`--json` prints one object and nothing else; `vram schema COMMAND` prints its JSON Schema. "
        "Bad input is one line on stderr and exit 2.\n"
    ]
    parent = click.Context(vram, info_name="vram", help_option_names=["-h", "--help"])
    for name in sorted(vram.commands):
        command = vram.commands[name]
        with click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100) as context:
            out.append(f"## vram {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(out)


if __name__ == "__main__" and "--write" in sys.argv:
    README.write_text(readme())
    CLI.write_text(cli_page())
