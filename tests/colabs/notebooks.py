"""Notebooks from their twins, `colabs/NAME.py` in percent format.

`python -m tests.colabs.notebooks` writes every notebook again; the twins are
what is read, edited and reviewed.
"""

import base64
import os
import pathlib
import tomllib
from typing import Any

import jupytext
import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'colabs'
TWINS = sorted(FOLDER.glob('[0-9]*.py'))
_METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python',
                   'name': 'python3'},
    'language_info': {'name': 'python'},
    'accelerator': 'GPU',  # what Colab offers first; none is needed
    'colab': {'provenance': []},
}


def repository() -> str:
  """The address of the project, from its one place."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  return project['urls']['Repository']


def made(twin: pathlib.Path) -> Any:
  """The notebook of a twin, with names of cells that stay the same."""
  notebook = jupytext.read(twin)
  notebook.metadata = nbformat.from_dict(_METADATA)
  for number, cell in enumerate(notebook.cells):
    cell.id = f'cell-{number:02}'
  notebook.nbformat, notebook.nbformat_minor = 4, 5
  return notebook


def executed(twin: pathlib.Path, folder: pathlib.Path, *, smoke: bool = True,
             parameters: str = '', first: str = '') -> Any:
  """Runs a notebook in a folder; returns it with its outputs.

  Args:
    twin: file of colabs/.
    folder: folder that it runs in.
    smoke: sizes that end in seconds.
    parameters: lines that follow its parameters.
    first: lines that are run before it.

  Raises:
    CellExecutionError: a cell ends in an error.
  """
  notebook = made(twin)
  if first:
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
  for cell in notebook.cells:
    if parameters and 'parameters' in cell.metadata.get('tags', ()):
      cell.source += f'\n{parameters}'
  environment = os.environ | {
      'SMOKE': '1' if smoke else '', 'PYTHONPATH': str(ROOT),
      # Programs that are compiled once are found again.
      'XDG_CACHE_HOME': str(ROOT / '.jax_cache')}
  client = nbclient.NotebookClient(
      notebook, timeout=3600, kernel_name='python3',
      resources={'metadata': {'path': str(folder)}})
  client.execute(env=environment)
  return notebook


def texts(notebook: Any) -> str:
  """All that an executed notebook has printed or shown as text."""
  return '\n'.join(
      output.get('text') or output.get('data', {}).get('text/plain', '')
      for cell in notebook.cells for output in cell.get('outputs', ()))


def pictures(notebook: Any) -> list[bytes]:
  """The pictures that an executed notebook has shown, PNG."""
  return [base64.b64decode(output.data['image/png'])
          for cell in notebook.cells for output in cell.get('outputs', ())
          if 'image/png' in output.get('data', {})]


def write(twin: pathlib.Path):
  """Writes the notebook beside its twin."""
  nbformat.write(made(twin), twin.with_suffix('.ipynb'))


if __name__ == '__main__':
  for path in TWINS:
    write(path)
    print(path.with_suffix('.ipynb').relative_to(ROOT))
