"""The site: build it strictly, and serve it on this machine only."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minitransformers.cli import repository
from minitransformers.reporting.arguments import UsageError


def serve(arguments: argparse.Namespace) -> int:
    """``minitransformers docs``: serve until Ctrl-C."""
    root = repository.root()
    folder = cache(root)
    if _out_of_date(root, folder):
        require_tools()
        print("building the site ...", file=sys.stderr, flush=True)
        if not _renew(folder):
            return 1
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), functools.partial(_Quiet, directory=str(folder)))
    except OSError as error:
        raise UsageError(f"port {arguments.port}: {error.strerror}; choose another with --port") from None
    with server:
        print(f"http://127.0.0.1:{server.server_port}  (Ctrl-C ends)", flush=True)
        server.serve_forever()
    return 0


def cache(root: Path) -> Path:
    """Where the site of a checkout is kept between two calls of ``docs``: among the user's caches, not in the checkout."""
    places = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, usual = places.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    home = Path(os.environ.get(variable) or Path.home() / usual)
    return home / "minitransformers" / f"site-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def build(folder: Path) -> bool:
    """Build into a folder with warnings as errors. False where that fails (it has said why)."""
    # Not --quiet: it drops the warnings before --strict can count them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=repository.root(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
    return done.returncode == 0


def _renew(folder: Path) -> bool:
    """Build beside the folder and put that in its place, so that what is there was built to its end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent, ignore_cleanup_errors=True) as beside:
        fresh, began = Path(beside) / "site", time.time()
        if not build(fresh):
            return False
        os.utime(fresh / "index.html", (began, began))       # what is written from now on is newer
        if folder.exists():
            folder.rename(Path(beside) / "old")
        fresh.rename(folder)
    return True


def require_tools() -> None:
    """Raise UsageError where MkDocs is not installed."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        raise UsageError("building the site needs MkDocs: pip install -e '.[docs]'")


def _out_of_date(root: Path, folder: Path) -> bool:
    built = folder / "index.html"
    if not built.is_file():
        return True
    sources = [root / "mkdocs.yml", *(root / "docs").rglob("*"), *(root / "minitransformers").rglob("*.py")]
    return any(path.stat().st_mtime > built.stat().st_mtime for path in sources if path.is_file() and "__pycache__" not in path.parts)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
