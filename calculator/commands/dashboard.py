"""vram app: the dashboard's server."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path

from calculator.commands.output import need

PAGE = Path(__file__).parents[1] / "ui" / "main.py"


def run_app(arguments: tuple[str, ...]) -> None:
    """Start Streamlit on the dashboard."""
    need("streamlit", "plotly", extra="app")
    from streamlit.web import cli as streamlit

    if not any(a.startswith("--server.port") for a in arguments):
        port = _free_port(8501)
        arguments = (f"--server.port={port}", *arguments)
        _open_browser(f"http://localhost:{port}")
    if not any(a.startswith("--server.address") for a in arguments):
        arguments = ("--server.address=localhost", *arguments)  # not for the whole network unless asked
    # headless: streamlit neither asks for an e-mail address nor opens a browser itself
    sys.argv = ["streamlit", "run", str(PAGE), "--server.headless=true", "--browser.gatherUsageStats=false", *arguments]
    sys.exit(streamlit.main())


def _free_port(first: int) -> int:
    for port in range(first, first + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    return first


def _open_browser(url: str) -> None:
    """Open the page once the server is likely up, where there is a screen to open it on."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"):
        timer = threading.Timer(3, webbrowser.open, [url])
        timer.daemon = True
        timer.start()
