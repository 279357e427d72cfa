"""Ground truth in pickles is read, and no pickle acts."""

import os
import pickle
import subprocess

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.evals.sets import restricted

VALUE = {
    'imlist': ['a', 'b'], 'gnd': [{'bbx': [1.5, 2, 3.0, 4], 'easy': [0, 1]}],
    'more': (None, True, {3}, b'x', -1, 10**20),
    'arrays': [np.arange(6).reshape(2, 3), np.float32([1, 2]), np.array([]),
               np.array(['x', 'yz']), np.array([1, 'a'], object)],
    'numbers': [np.int64(3), np.float64(0.5), np.bool_(True)]}


@pytest.mark.parametrize('version', range(5))
def test_values_come_back(version):
  got = restricted.load(pickle.dumps(VALUE, version), 'a.pkl')
  assert {k: v for k, v in got.items() if k in ('imlist', 'gnd', 'more')} == {
      k: v for k, v in VALUE.items() if k in ('imlist', 'gnd', 'more')}
  for ours, theirs in zip((*got['arrays'], *got['numbers']),
                          (*VALUE['arrays'], *VALUE['numbers']), strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_old_names_of_numpy_are_known():
  data = pickle.dumps(VALUE['arrays'], 2).replace(
      b'numpy._core.multiarray', b'numpy.core.multiarray')
  np.testing.assert_array_equal(
      restricted.load(data, 'a.pkl')[0], VALUE['arrays'][0])


class Harmful:
  """Makes a file when a careless reader opens it."""

  def __init__(self, call, *arguments):
    self._made = call, arguments

  def __reduce__(self):
    return self._made


@pytest.mark.parametrize('call, arguments', [
    (os.system, ('touch {}',)), (eval, ("open('{}', 'w')",)),
    (open, ('{}', 'w')), (subprocess.call, (['touch', '{}'],)),
    (np.memmap, ('{}', 'uint8', 'w+', 0, 1)), (getattr, (np, 'save')),
    (np.load, ('{}',)), (np.fromfile, ('{}',))])
@pytest.mark.parametrize('version', [0, 2, 4])
def test_harm_is_refused(call, arguments, version, tmp_path):
  mark = tmp_path / 'mark'
  fill = lambda x: x.format(mark) if isinstance(x, str) else (
      [fill(y) for y in x] if isinstance(x, list) else
      'numpy' if x is np else x)
  data = pickle.dumps(
      {'imlist': [Harmful(call, *map(fill, arguments))]}, version)
  with pytest.raises(errors.UserError, match=r'gnd.pkl asks for .*get the file '
                                             'again'):
    restricted.load(data, 'gnd.pkl')
  assert not mark.exists()


@pytest.mark.parametrize('data', [
    b'', b'no pickle', pickle.dumps(VALUE)[:-20], b'\x80\x04.',
    b'cnumpy\nndarray.shape\n.', b'cnumpy._core.multiarray\n_reconstruct\n'
    b'(cnumpy\ndtype\n(I0\ntVb\ntR.', b'P1\n.', b'\x82\x01.'])
def test_damage_is_a_sentence(data):
  with pytest.raises(errors.UserError, match='gnd.pkl .*get the file again'):
    restricted.load(data, 'gnd.pkl')
