"""What a lesson puts on its page: sentences with numbers of the run, and figures with the same said in words.

In a notebook they are Markdown and pictures; in a script the sentences are printed, and of a figure what it shows.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import textwrap
from html import escape
from types import ModuleType
from typing import Any

from tinyllm.backend.names import kind_of

PIXELS = 100  # an inch of a figure on the page; the picture itself is twice as fine
WIDTH = 100  # letters of a printed line
OWN_LINE = re.compile(r"\s*([-*+>|#]|\d+[.)])\s?")  # what begins a line of its own in Markdown


def in_notebook() -> bool:
    """Whether something here shows pictures: Jupyter's kernels do, a terminal's IPython does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"


def pyplot() -> ModuleType:
    """matplotlib.pyplot, which opens no windows in a script.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "the lessons draw with matplotlib, which is not installed: pip install matplotlib, or tinyllm-engine[plot]"
        ) from error
    if not in_notebook():
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def say(text: str) -> None:
    """Show a sentence or a few: Markdown in a notebook, wrapped text without its marks in a script.

    Parameters
    ----------
    text : str
        Markdown. Blank lines part paragraphs; lists and tables keep their lines.
    """
    if not isinstance(text, str):
        raise TypeError(f'say takes a text, not {kind_of(text)}: kit.say(f"the loss is {{loss:.3f}}")')
    text = textwrap.dedent(text).strip()
    if in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(text))
    else:
        print(plain(text))


def plain(markdown: str) -> str:
    """Markdown as a terminal shows it: paragraphs wrapped, without the marks of bold and of code."""
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", markdown))


def _paragraph(text: str) -> str:
    lines: list[str] = []
    for line in _unmarked(text).splitlines():
        if not lines or OWN_LINE.match(line):
            lines.append(line)
        else:
            lines[-1] += f" {line.strip()}"
    return "\n".join(line if line.startswith("|") else textwrap.fill(line, WIDTH) for line in lines)


def _unmarked(text: str) -> str:
    pieces = re.split(r"`([^`]+)`", text)  # code stands at the odd places, and two stars in it are a power
    pieces[::2] = [re.sub(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", r"\1", piece, flags=re.DOTALL) for piece in pieces[::2]]
    return "".join(pieces)


def show(figure: Any, alt: str) -> None:
    """Show a figure and close it; a script prints what it shows.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    alt : str
        What the picture shows, in one to three sentences with its numbers, for whoever does not see it.

    Raises
    ------
    TypeError
        If it is no figure.
    ValueError
        If `alt` says nothing.
    """
    plt = pyplot()
    if not isinstance(figure, plt.Figure):
        hint = "axes.figure" if hasattr(figure, "figure") else "what plt.subplots() gives first"
        raise TypeError(f"show takes a matplotlib figure, not {kind_of(figure)}: give {hint}")
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError("a figure needs its content in words: show(figure, alt) with a sentence about what it shows")
    if in_notebook():
        from IPython.display import HTML, display

        display(HTML(_image(figure, alt)))
    else:
        print(textwrap.fill(f"figure: {' '.join(alt.split())}", WIDTH))
    plt.close(figure)


def _image(figure: Any, alt: str) -> str:
    """The figure as an element of HTML that needs no file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * PIXELS, facecolor="white")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * PIXELS)
    words = escape(" ".join(alt.split()))
    return f'<img alt="{words}" style="width:{width}px;max-width:100%" src="data:image/png;base64,{data}">'


def show_html(html: str, lines: list[str]) -> None:
    """Show an element of HTML in a notebook; a script prints the lines, which say the same."""
    if in_notebook():
        from IPython.display import HTML, display

        display(HTML(html))
    else:
        kept = [line if "check(" in line else textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines]
        print("\n".join(kept))  # a line to be copied stays one
