"""The command line. Each command imports what it needs, so that starting one costs little."""

from __future__ import annotations

import os
import sys

import click

from calculator.cli import estimates, grids, listings, runs  # noqa: F401  # their commands add themselves
from calculator.cli.group import vram
from calculator.errors import CalculatorError, NotModelled

LATER = {
    "plan": "replicas and cost for traffic come with capacity planning",
    "train": "training memory comes in a later version",
    "detect": "finding this machine's GPUs comes in a later version",
}


@vram.command(context_settings={"ignore_unknown_options": True})
@click.argument("streamlit_args", nargs=-1, type=click.UNPROCESSED)
def app(streamlit_args: tuple[str, ...]) -> None:
    """Open the dashboard (extra `app`)."""
    from calculator.commands.dashboard import run_app

    run_app(streamlit_args)


def _later(name: str, why: str) -> None:
    @vram.command(name, context_settings={"ignore_unknown_options": True}, help=f"Later: {why}.", add_help_option=True)
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def later(rest: tuple[str, ...]) -> None:  # noqa: ARG001
        raise NotModelled(f"vram {name} is not there yet: {why}")


for _name, _why in LATER.items():
    _later(_name, _why)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake is one line on stderr and exit 2."""
    try:
        vram.main(args=arguments, prog_name="vram", standalone_mode=False)
    except CalculatorError as e:
        fail(str(e))
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(2)
    except click.ClickException as e:
        fail(e.format_message())
    except click.Abort:
        fail("stopped")
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(message: str) -> None:
    """One line on stderr, exit 2."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
