"""PDQ by the package that a user installs: a stand-in, and the real one."""

import importlib.util
import io
import sys
import types

import numpy as np
from PIL import Image
import pytest

from dinojax.core import errors
from dinojax.curate import pdq
from dinojax.data import sources
from dinojax.runs import curation
from tests.curate import test_recipe

pile = test_recipe.pile


def stand_in():
  """A package that hashes by the signs of a thumbnail's differences."""
  def compute(pixels):
    grey = np.asarray(Image.fromarray(pixels).convert('L').resize(
        (17, 16), Image.Resampling.BOX), float)
    quality = 100 if grey.std() > 8 else 0
    return (np.diff(grey, axis=1) > 0).ravel().astype(np.uint8), quality

  module = types.ModuleType('pdqhash')
  module.compute = compute
  return module


@pytest.fixture
def installed(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pdqhash', stand_in())


def test_hashes_are_packed_and_blank_images_have_none(installed):
  blank = np.full((40, 40, 3), 7, np.uint8)
  image = np.array(test_recipe.picture(1))
  rows, good = pdq.hashes([image, blank, image[:, ::-1]])
  assert rows.shape == (2, 32) and good.tolist() == [0, 2]
  bits, _ = stand_in().compute(image)
  np.testing.assert_array_equal(np.unpackbits(rows[0]), bits)
  nothing, none = pdq.hashes([blank])
  assert nothing.shape == (0, 32) and none.shape == (0,)


def check(workdir):
  """Of a picture and its copy one goes, also if stored anew or resized."""
  gone = {name for name, (_, why) in test_recipe.rows(
      workdir, 'hash').items() if why}
  assert len(gone) == 24
  for copy, first in (('same', 0), ('anew', 10), ('jpeg', 20), ('small', 30)):
    for i in range(6):
      assert sum(name.startswith((
          f'{copy}-{i}.', f'original-{first + i:03d}.')) for name in gone) == 1


def test_copies_are_found_by_its_bits(installed, pile, tmp_path):
  curation.curate(curation.Request(
      test_recipe.config(pile, hash__kind='pdq'), str(tmp_path), workers=1,
      until='hash'))
  check(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec('pdqhash') is None,
                    reason='pdqhash is not installed')
def test_the_real_package_finds_copies_of_photographs(tmp_path):
  """Soft spots, as the pile has, have no detail that its bits are of."""
  photographs, pool = sources.open_source('photos:validation'), tmp_path / 'in'
  pool.mkdir()
  shown = []
  for i in range(0, len(photographs), 40):
    image = Image.open(io.BytesIO(photographs[i].image)).convert('RGB')
    image.save(pool / f'{i}.first.png')
    image.save(pool / f'{i}.anew.jpg', quality=50)
    image.resize((32, 32)).save(pool / f'{i}.small.png')
    files = sorted(pool.glob(f'{i}.*'))
    _, good = pdq.hashes([np.asarray(Image.open(file)) for file in files])
    if len(good) == 3:
      shown.append(str(i))
  c = test_recipe.config(pool, hash__kind='pdq')
  c.stages = ('ingest', 'filter', 'hash')
  curation.curate(curation.Request(c, str(tmp_path / 'out'), workers=1))
  kept = [name.partition('.')[0] for name, (_, why) in test_recipe.rows(
      tmp_path / 'out', 'hash').items() if not why]
  assert len(shown) >= 8
  assert [kept.count(name) for name in shown] == [1] * len(shown)


def test_without_it_there_is_a_sentence(monkeypatch, pile, tmp_path):
  monkeypatch.setitem(sys.modules, 'pdqhash', None)
  with pytest.raises(errors.UserError, match='pip install pdqhash'):
    test_recipe.curate(pile, tmp_path, hash__kind='pdq')
