"""The site: build it strictly into ./site, and serve that on this machine only."""

from __future__ import annotations

import argparse
import functools
import http.server
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from minitransformers.cli import repository
from minitransformers.reporting.arguments import UsageError


def serve(arguments: argparse.Namespace) -> int:
    """``minitransformers docs``: serve until Ctrl-C."""
    root = repository.root()
    folder: Path | None = root / "site"
    if _out_of_date(root):
        require_tools()
        print("building the site ...", file=sys.stderr, flush=True)
        folder = build()
    if folder is None:
        return 1
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), functools.partial(_Quiet, directory=str(folder)))
    except OSError as error:
        raise UsageError(f"port {arguments.port}: {error.strerror}; choose another with --port") from None
    with server:
        print(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends)", flush=True)
        server.serve_forever()
    return 0


def build() -> Path | None:
    """Build into ./site with warnings as errors. Returns the folder, or None where the build fails (it has said why)."""
    root = repository.root()
    # Not --quiet: it drops the warnings before --strict can count them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(root / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        return None
    return root / "site"


def require_tools() -> None:
    """Raise UsageError where MkDocs is not installed."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        raise UsageError("building the site needs MkDocs: pip install -e '.[docs]'")


def _out_of_date(root: Path) -> bool:
    built = root / "site" / "index.html"
    if not built.is_file():
        return True
    sources = [root / "mkdocs.yml", *(root / "docs").rglob("*"), *(root / "minitransformers").rglob("*.py")]
    return any(path.stat().st_mtime > built.stat().st_mtime for path in sources if path.is_file() and "__pycache__" not in path.parts)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
