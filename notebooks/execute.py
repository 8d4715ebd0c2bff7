"""Executes a notebook: python notebooks/execute.py NOTEBOOK [OUT]. With OUT the outputs are written there."""

import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
for cell in notebook.cells:
    # When it ran is nobody's business: the file would change every time.
    cell.metadata.pop("execution", None)
if len(sys.argv) > 2:
    nbformat.write(notebook, sys.argv[2])
