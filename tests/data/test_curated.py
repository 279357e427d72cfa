"""Curated sets as sources of training."""

import json

import pytest

from dinojax.core import errors
from dinojax.data import curated


def test_a_curated_set_takes_the_place_of_its_parts(tmp_path):
  (tmp_path / 'mixture.json').write_text(json.dumps({
      'train': [['arrayrecord:a/*.arrayrecord', 3], ['folder:/b', 1]],
      'homogeneous': [['folder:/c', 0.1]]}))
  train, whole = curated.expand(
      ((f'curated:{tmp_path}', 2.0), ('photos:train', 1.0)),
      (('folder:/d', 0.2),))
  assert train == ((f'arrayrecord:{tmp_path}/a/*.arrayrecord', 1.5),
                   ('folder:/b', 0.5), ('photos:train', 1.0))
  assert whole == (('folder:/d', 0.2), ('folder:/c', 0.1))
  assert curated.expand((('photos:train', 1.0),), ()) == (
      (('photos:train', 1.0),), ())


@pytest.mark.parametrize('text, words', [
    (None, 'has no mixture.json'), ('{}', 'is not a list'),
    ('{"train": [["a", "x"]], "homogeneous": []}', 'is not a list'),
    ('{"train": [], "homogeneous": []}', 'nothing to train on'),
    ('{"tr', 'is not whole')])
def test_damaged_sets_are_refused(tmp_path, text, words):
  if text is not None:
    (tmp_path / 'mixture.json').write_text(text)
  with pytest.raises(errors.UserError, match=words):
    curated.expand(((f'curated:{tmp_path}', 1.0),), ())
