"""Chains of stages: what is done stays, whatever stops the work."""

import dataclasses
import os
import pathlib
import signal

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.curate import chain
from dinojax.curate import tables
from dinojax.curate.engines import array
from dinojax.curate.engines import in_process
from dinojax.curate.engines import work


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Writes `size` files of numbers; a task may end its process."""

  size: int = 5
  factor: int = 1
  accident: str = ''  # folder of what has already gone wrong
  name: str = 'numbers'

  version, needs = 1, ()

  def settings(self):
    return {'size': self.size, 'factor': self.factor}

  def phases(self):
    return (work.Phase('write', lambda place: self.size, self._write),)

  def _write(self, place, index):
    if self.accident and index == 2:
      once = pathlib.Path(self.accident, 'once')
      if not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if self.accident.endswith('always') and index == 3:
      os._exit(1)
    tables.write(place.file('write', index),
                 {'n': np.arange(index) * self.factor})
    return {'numbers': index}


@dataclasses.dataclass(frozen=True)
class Sum:
  """Adds the numbers up."""

  extra: int = 0
  name: str = 'sum'
  needs: tuple = ('numbers',)

  version = 1

  def settings(self):
    return {'extra': self.extra}

  def phases(self):
    return (work.Phase('all', lambda place: 1, self._all),)

  def _all(self, place, index):
    inner = place.inputs['numbers']
    total = sum(int(tables.read(inner.checked('write', i))['n'].sum())
                for i in range(inner.count('write')))
    return {'total': total + self.extra}


def run(folder, *stages, engine=None):
  lines = []
  places = chain.run(stages or (Numbers(), Sum()), str(folder),
                     engine or in_process.InProcess(1), say=lines.append)
  return places, lines


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes()
          for p in sorted(pathlib.Path(folder).rglob('*')) if p.is_file()}


def test_counts_are_told_and_done_stages_are_kept(tmp_path):
  _, first = run(tmp_path)
  before = contents(tmp_path)
  _, again = run(tmp_path)
  assert first == ['numbers: numbers 10', 'sum: total 10']
  assert again == [f'{line} (kept)' for line in first]
  assert contents(tmp_path) == before


def test_a_changed_option_redoes_what_depends_on_it_and_nothing_else(tmp_path):
  run(tmp_path)
  assert run(tmp_path, Numbers(), Sum(extra=1))[1] == [
      'numbers: numbers 10 (kept)', 'sum: total 11']
  assert run(tmp_path, Numbers(factor=2), Sum())[1] == [
      'numbers: numbers 10', 'sum: total 20']
  # Back again: nothing is lost.
  assert all('kept' in line for line in run(tmp_path)[1])


def test_wrong_orders_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match='put numbers before it'):
    run(tmp_path, Sum(), Numbers())
  with pytest.raises(errors.UserError, match='numbers twice'):
    run(tmp_path, Numbers(), Numbers())


def test_a_task_that_was_cut_off_is_done_again(tmp_path):
  places, _ = run(tmp_path / 'a')
  want = contents(tmp_path / 'a')
  (pathlib.Path(places['numbers'].folder) / 'manifest.json').unlink()
  folder = pathlib.Path(places['numbers'].folder) / 'write'
  (folder / '000003.done').unlink()
  (folder / '000003.parquet').write_bytes(b'half')
  (folder / '000003.parquet.tmp').write_bytes(b'more')
  run(tmp_path / 'a')
  left = contents(tmp_path / 'a')
  assert {k: v for k, v in left.items() if not k.endswith('.tmp')} == want


def test_a_process_that_dies_costs_nothing(tmp_path):
  accident = tmp_path / 'accident'
  accident.mkdir()
  run(tmp_path / 'want')
  _, lines = run(tmp_path / 'got', Numbers(accident=str(accident)), Sum(),
                 engine=in_process.InProcess(2))
  assert lines == ['numbers: numbers 10', 'sum: total 10']
  assert (accident / 'once').exists()
  assert contents(tmp_path / 'got') == contents(tmp_path / 'want')


def test_a_task_that_kills_each_time_is_named_and_others_are_done(tmp_path):
  accident = tmp_path / 'always'
  accident.mkdir()
  (accident / 'once').touch()
  stage = Numbers(accident=str(accident))
  with pytest.raises(errors.UserError, match='numbers/write/000003'):
    run(tmp_path, stage, engine=in_process.InProcess(2))
  place = chain.place_of(stage, str(tmp_path), {})
  assert place.count('write') == 4


def test_members_of_an_array_do_their_share(tmp_path):
  run(tmp_path / 'want')
  member = lambda i: array.Array(i, 3, 1)
  for i in (0, 1):
    with pytest.raises(errors.UserError, match='other members'):
      run(tmp_path / 'got', engine=member(i))
  # The last one needs nobody; the task of the sum is the first one's.
  with pytest.raises(errors.UserError, match='sum/all'):
    run(tmp_path / 'got', engine=member(2))
  run(tmp_path / 'got', engine=member(0))
  assert contents(tmp_path / 'got') == contents(tmp_path / 'want')
  with pytest.raises(errors.UserError, match='--index=0 … 2'):
    member(3)


def test_a_flipped_byte_is_named(tmp_path):
  places, _ = run(tmp_path)
  path = pathlib.Path(places['numbers'].file('write', 4))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))
  work._check.cache_clear()
  with pytest.raises(errors.UserError) as error:
    run(tmp_path, Numbers(), Sum(extra=1))
  assert '000004.parquet is not as it was written' in str(error.value)
  path.with_suffix('.done').unlink()
  (pathlib.Path(places['numbers'].folder) / 'manifest.json').unlink()
  assert run(tmp_path, Numbers(), Sum(extra=1))[1][1] == 'sum: total 11'


class Full(Numbers):
  """Meets a full disk."""

  def _write(self, place, index):
    raise OSError(28, 'No space left on device', place.file('write', index))


def test_a_full_disk_is_a_sentence(tmp_path):
  with pytest.raises(errors.UserError, match='free space and start the same'):
    run(tmp_path, Full())


def test_tables_keep_what_they_are_given(tmp_path):
  columns = {'a': np.arange(3), 'b': ['x', '', '\ud800é'],
             'c': [b'\xff', b'', b'1'], 'd': np.eye(3, dtype=np.float32)}
  tables.write(tmp_path / 'a', columns)
  tables.write(tmp_path / 'b', columns)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
  back = tables.read(tmp_path / 'a')
  np.testing.assert_array_equal(back['a'], columns['a'])
  assert back['b'] == ['x', '', '?é'] and back['c'] == columns['c']
  np.testing.assert_array_equal(back['d'], columns['d'])
  assert list(tables.read(tmp_path / 'a', ['c'])) == ['c']
  (tmp_path / 'a').write_bytes(b'damaged')
  with pytest.raises(errors.UserError, match='cannot be read'):
    tables.read(tmp_path / 'a')
