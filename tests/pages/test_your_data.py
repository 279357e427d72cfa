"""The config and the source of docs/your_data.md, and sources that are none."""

import csv
import pathlib
import pickle
import re
import sys

from PIL import Image
import pytest

from dinojax.configs import demo
from dinojax.core import errors
from dinojax.data import sources
from dinojax.runs import autoconfig
from dinojax.runs import batches as batches_lib
from dinojax.train import settings as settings_lib

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/your_data.md').read_text()
BLOCKS = dict(zip(('config', 'source'), re.findall(
    r'```python\n(.*?)```', PAGE, re.DOTALL), strict=True))


def test_the_config_of_the_page_reads():
  s = settings_lib.read(autoconfig.config_of(BLOCKS['config'], 'plankton.py'))
  assert s.data.train == 'folder:plankton/train'
  assert s.num_patches == 100 and s.crops.local_px == 40


@pytest.fixture
def page_source(tmp_path, monkeypatch):
  """The spec of the page's source, over twelve images."""
  (tmp_path / 'my_data.py').write_text(BLOCKS['source'])
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
  monkeypatch.delitem(sys.modules, 'my_data', raising=False)
  with open('train.csv', 'w', newline='') as file:
    rows = csv.writer(file)
    rows.writerow(['file', 'class'])
    for i in range(12):
      Image.new('RGB', (64, 64), (20 * i, 0, 0)).save(f'{i}.png')
      rows.writerow([f'{i}.png', 'ab'[i % 2]])
  yield 'python:my_data:Table:train.csv'
  sys.modules.pop('my_data', None)


def test_the_source_of_the_page_gives_batches(page_source):
  source = sources.open_source(page_source)
  assert source.spec == page_source and source.classes == ('a', 'b')
  assert pickle.loads(pickle.dumps(source))[3].label == 1
  s = settings_lib.read(demo.get_config('smoke'))
  batch = next(batches_lib.make(s, [(source, 1.0)], [], 0))
  assert set(batch['label']) == {0, 1} and not batch['bad'].any()
  assert len(sources.open_source(f'held_out:{page_source}')) == 1


@pytest.mark.parametrize('spec, message', [
    ('python:no_such_module:A', 'no_such_module'),
    ('python:my_data:Nothing:x', 'Nothing'), ('python:my_data', 'MODULE:CLASS'),
    ('python:collections:Counter', 'lacks spec, classes')])
def test_sources_that_are_none(spec, message, page_source):
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(spec)
