"""Lessons in a browser, without internet: Python in WebAssembly, served here, in cells that one can edit.

serve.py is the server and pages.py what it shows; recorded.py writes the judge's cases down, since Hypothesis is
compiled and stays outside. In the browser page.js has the cells, worker.js runs Python, and standins.py and bpe.py take
the place of packages that are compiled as well. `shim/` is vendored.
"""
