"""Notebooks: as their twins, without outputs, and they run."""

import ast
import io
import re

import nbformat
import numpy as np
from PIL import Image
import pytest

from tests.colabs import notebooks

TWINS = {twin.stem[:2]: twin for twin in notebooks.TWINS}
BYTES = 60_000


@pytest.fixture(params=notebooks.TWINS, ids=lambda twin: twin.stem)
def twin(request):
  return request.param


def tagged(notebook, tag):
  return [cell.source for cell in notebook.cells
          if tag in cell.metadata.get('tags', ())]


def test_these_are_the_notebooks():
  assert sorted(TWINS) == [
      '01', '02', '03', '04', '05', '06', '07', '08', '09', '10']
  assert {path.stem for path in notebooks.FOLDER.glob('*.ipynb')} == {
      path.stem for path in notebooks.TWINS}


def test_a_notebook_is_its_twin(twin):
  """`make notebooks` writes it again."""
  path = twin.with_suffix('.ipynb')
  assert path.stat().st_size <= BYTES
  kept = nbformat.read(path, as_version=4)
  nbformat.validate(kept)
  assert kept == notebooks.made(twin)
  for cell in kept.cells:
    assert not cell.get('outputs') and cell.get('execution_count') is None


def test_a_notebook_begins_as_all_do(twin):
  cells = notebooks.made(twin).cells
  address = notebooks.repository()
  assert cells[0].source.startswith('# ')
  where = address.removeprefix('https://github.com/')
  assert (f'(https://colab.research.google.com/github/{where}/blob/main/colabs/'
          f'{twin.stem}.ipynb)') in cells[0].source
  first = notebooks.made(notebooks.TWINS[0])
  install, = tagged(notebooks.made(twin), 'install')
  assert [install] == tagged(first, 'install')
  assert f"REPOSITORY = '{address}'" in install
  parameters, = tagged(notebooks.made(twin), 'parameters')
  assert parameters.startswith("SMOKE = os.environ.get('SMOKE') == '1'")


def test_no_notebook_spells_another_address(twin):
  addresses = re.findall(r'https://(?:github\.com/|colab\.research\.google\.com/'
                     r'github/)([\w-]+/[\w-]+)', twin.read_text())
  assert addresses and set(addresses) == {
      notebooks.repository().removeprefix('https://github.com/')}


def test_a_notebook_imports_the_library_and_no_command(twin):
  names = [name for node in ast.walk(ast.parse(twin.read_text()))
           for name in ([alias.name for alias in node.names]
                        if isinstance(node, ast.Import) else
                        [f'{node.module}.{alias.name}' for alias in node.names]
                        if isinstance(node, ast.ImportFrom) else [])]
  assert 'dinojax' in names or any(n.startswith('dinojax.') for n in names)
  assert not [n for n in names if n.startswith('dinojax.commands')]


def shown(notebook):
  """The pictures, none of them of one colour."""
  pictures = [np.asarray(Image.open(io.BytesIO(data)).convert('RGB'), int)
              for data in notebooks.pictures(notebook)]
  assert all(picture.std() > 5 for picture in pictures)
  return pictures


@pytest.mark.slow
def test_01_runs(tmp_path):
  notebook = notebooks.executed(TWINS['01'], tmp_path)
  assert len(shown(notebook)) == 5
  assert 'dinojax.Features(cls [4, 32]' in notebooks.texts(notebook)


@pytest.mark.slow
def test_02_runs(tmp_path):
  notebook = notebooks.executed(TWINS['02'], tmp_path)
  assert len(shown(notebook)) == 3
  charts = [output.data['text/html'] for cell in notebook.cells
            for output in cell.get('outputs', ())
            if 'text/html' in output.get('data', {})]
  assert len(charts) == 4 and 'k-NN accuracy' in charts[1]


@pytest.mark.slow
def test_03_runs(tmp_path):
  text = notebooks.texts(notebooks.executed(TWINS['03'], tmp_path))
  assert 'starts from runs/start@6' in text and 'knn/start' in text


@pytest.mark.slow
def test_04_runs(tmp_path):
  text = notebooks.texts(notebooks.executed(TWINS['04'], tmp_path))
  sizes = re.findall(r'(teacher|student): ([\d.]+) M parameters', text)
  assert len(sizes) == 2 and float(sizes[0][1]) > 2 * float(sizes[1][1])


@pytest.mark.slow
@pytest.mark.torch
def test_05_runs(tmp_path):
  text = notebooks.texts(notebooks.executed(
      TWINS['05'], tmp_path,
      first='from bench import peers\npeers.torchvision()'))
  gap = re.search(r'largest difference of CLS: ([\d.e-]+)', text)
  assert gap and float(gap[1]) < 1e-4
  assert text.count('checked: features by') == 5


@pytest.mark.slow
def test_06_runs(tmp_path):
  text = notebooks.texts(notebooks.executed(TWINS['06'], tmp_path))
  assert "P(None, None, 'fsdp')" in text and 'cpu:8: 8 devices' in text


@pytest.mark.slow
def test_07_runs(tmp_path):
  notebook = notebooks.executed(TWINS['07'], tmp_path)
  text = notebooks.texts(notebook)
  assert 'index,label,prediction,top-1' in text
  pages = [output.data for cell in notebook.cells
           for output in cell.get('outputs', ()) if 'data' in output]
  tables = [data['text/markdown'] for data in pages
            if 'text/markdown' in data]
  assert len(tables) == 1 and '| rankme |' in tables[0]
  html = [data['text/html'] for data in pages if 'text/html' in data]
  charts = [part for part in html if '<figure' in part]
  assert 'by pixels' in charts[0] and '<table' in html[-1]


@pytest.mark.slow
def test_08_runs(tmp_path):
  notebook = notebooks.executed(TWINS['08'], tmp_path)
  text = notebooks.texts(notebook)
  # Six copies, a blank image and one that is none, of 68. Three tiles of the
  # photographs are of empty sky, one of them with its copy.
  assert 'ingest: listed 68 · images 67 · unreadable 1' in text
  assert 'filter: kept 63 · blank 4' in text
  assert re.search(r'dedup: .*kept 58 · copy 5', text)
  assert 'records 30' in text and 'core hours' in text
  html = [output.data['text/html'] for cell in notebook.cells
          for output in cell.get('outputs', ()) if 'data' in output
          and 'text/html' in output.data]
  assert 'Funnel' in html[-1] and 'data:image/jpeg' in html[-1]


@pytest.mark.slow
def test_09_runs(tmp_path):
  notebook = notebooks.executed(TWINS['09'], tmp_path)
  text = notebooks.texts(notebook)
  assert '4 images in runs/segment_smoke/predicted/maps' in text
  assert len(notebooks.pictures(notebook)) == 4  # two of each head


@pytest.mark.slow
def test_10_runs(tmp_path):
  notebook = notebooks.executed(TWINS['10'], tmp_path)
  text = notebooks.texts(notebook)
  assert 'finished 4 steps' in text and 'a ginger cat' in text
  assert len(shown(notebook)) == 3
