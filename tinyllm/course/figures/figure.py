"""A figure one can touch: numbers of a run, a few lines of JavaScript that show them, and the same said in words.

Each is one HTML file that needs nothing beside it, no server and no network, so that it opens from a USB stick. What
they share is in `page.html`, `page.css` and `page.js`; what is a figure's own, in a `.py` and a `.js` of its name. The
numbers are the engine's; JavaScript chooses among them and draws, and where it computes (NF4) a test compares the bits.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.course.page import in_notebook, pyplot, show_html
from tinyllm.formats.atomic import make_folder, write_text, write_whole

HERE = Path(__file__).parent
LARGEST = 300_000  # bytes of one file: what a page of a lesson can bear, and a slow connection


@dataclass(frozen=True)
class Figure:
    """One figure, filled with numbers.

    Attributes
    ----------
    name : str
        The stem of its JavaScript, and of the files that `save` writes.
    title : str
        Its heading.
    words : str
        What it shows and what one can do, in a sentence or two.
    data : dict
        What goes into the page as JSON.
    draw : callable
        Draws the same numbers, unmoving, into a matplotlib figure that it is given.
    size : (float, float)
        Of that picture, in inches.
    """

    name: str
    title: str
    words: str
    data: dict[str, Any]
    draw: Callable[[Any], None] = field(repr=False)
    size: tuple[float, float] = (7.0, 3.5)

    @property
    def html(self) -> str:
        """The whole page.

        Raises
        ------
        ValueError
            If it would be larger than 300 kB, or has a number that is not finite.
        """
        # In a script element only "<" could end it; JSON may write that letter in another way.
        numbers = json.dumps(self.data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        page = (HERE / "page.html").read_text(encoding="utf-8")
        script = "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in ("page", self.name))
        parts = {
            "TITLE": escape(self.title),
            "WORDS": escape(self.words),
            "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
            "DATA": numbers,
            "SCRIPT": script,
        }
        page = re.sub(r"\{([A-Z]+)\}", lambda name: parts[name[1]], page)
        if len(page.encode()) > LARGEST:
            raise ValueError(
                f"the figure {self.name!r} would take {len(page.encode()):,} bytes, and {LARGEST:,} are the most: "
                "give it fewer numbers, a part of the weight or fewer layers"
            )
        return page

    @property
    def png(self) -> bytes:
        """The same numbers as a picture. Needs matplotlib."""
        plt = pyplot()
        figure, file = plt.figure(figsize=self.size, layout="constrained"), io.BytesIO()
        self.draw(figure)
        figure.savefig(file, format="png", dpi=150, facecolor="white")
        plt.close(figure)
        return file.getvalue()

    def save(self, folder: str | Path = ".") -> Path:
        """Write the page and, beside it, the picture; return the page's path."""
        html, png = self.html, self.png
        path = make_folder(folder) / f"{self.name}.html"
        write_text(path, html)
        with write_whole(path.with_suffix(".png")) as file:
            file.write(png)
        return path

    def show(self) -> None:
        """Show it in a notebook, in a frame of its own; a script prints what it shows, and how to have it as a file."""
        html = self._repr_html_() if in_notebook() else ""
        title = self.title if self.title.endswith("?") else f"{self.title}."
        file = 'Of a figure f, f.save("folder") makes a file.'
        show_html(html, [f"figure one can touch: {title} {self.words} {file}"])

    def _repr_html_(self) -> str:
        page, style = escape(self.html, quote=True), "width:100%;height:40em;border:0"
        # In a div, since of a frame alone IPython warns.
        return f'<div><iframe title="{escape(self.title)}" style="{style}" srcdoc="{page}"></iframe></div>'


def numbers(array: Any) -> list:
    """An array as nested lists of the shortest decimals that are its floats again, once they are float32."""
    array = np.asarray(array)
    if array.dtype != np.float32:
        return array.tolist()
    return np.array([float(str(x)) for x in array.reshape(-1)]).reshape(array.shape).tolist()
