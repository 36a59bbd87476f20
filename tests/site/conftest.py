"""The site, built once and strictly, served on this machine, and one headless browser to read it."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from site_pages import ROOT

from minitransformers.foundation.atomic import write_atomically


@dataclass(frozen=True)
class Build:
    """A built site, and what the build had to say against it."""

    folder: Path
    code: int
    warnings: str


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The site, built strictly, once: the first process of the tests builds it, others wait for it."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent                               # that of all workers
    folder, told = shared / "built-site", shared / "built-site.json"
    try:
        folder.mkdir()
    except FileExistsError:
        while not told.exists():                             # as long as a test may take
            time.sleep(0.2)
    else:
        # Not --quiet: it keeps warnings from being counted, and then nothing is strict.
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
        write_atomically(told, [json.dumps([done.returncode, "\n".join(said)]).encode()])
    return Build(folder, *json.loads(told.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def site(build: Build) -> Path:
    """The folder of the built site. Warnings fail one test, not all that look at pages."""
    if not (build.folder / "sitemap.xml").is_file():
        pytest.fail(build.warnings, pytrace=False)
    return build.folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


class _WithoutIndex(_Quiet):
    """The search index knows one page: every page that is opened works for a second on the whole one, in the background."""

    def do_GET(self) -> None:
        if not self.path.startswith("/search/search_index.json"):
            return super().do_GET()
        index = json.loads(Path(self.directory, "search", "search_index.json").read_bytes())
        body = json.dumps({**index, "docs": index["docs"][:1]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, but for what the search finds."""
    yield from _served(site, _WithoutIndex)


@pytest.fixture(scope="session")
def searchable_address(site: Path) -> Iterator[str]:
    """Where all of the site is served."""
    yield from _served(site, _Quiet)


def _served(site: Path, handler: type[_Quiet]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A headless Chromium that records its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium or no chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "force-prefers-reduced-motion", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chromium.set_script_timeout(20)
    chromium.set_page_load_timeout(30)
    yield chromium
    chromium.quit()
