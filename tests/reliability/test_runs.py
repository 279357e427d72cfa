"""Whatever stops a run, the same command ends as if nothing had."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import log
from dinojax.evals import while_training
from dinojax.parallel import holder
from dinojax.runs import assemble
from tests.reliability import fake


class Killed(BaseException):
  """Nothing catches it, as nothing survives a kill."""


@pytest.fixture(autouse=True)
def runs(monkeypatch):
  fake.install(monkeypatch)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    fake.install(monkeypatch)
    folder = tmp_path_factory.mktemp('unbroken')
    fake.train(folder)
  return folder


def break_at(monkeypatch, number, error):
  """The write of this number fails, half of it done; those after too."""
  count = [0]

  def breaking(function, half):
    def call(*args):
      count[0] += 1
      if count[0] >= number:
        half(*args)
        raise error
      return function(*args)
    return call

  def half_a_file(path, text):
    (path.parent / (path.name + atomic.SUFFIX)).write_text(
        text[:len(text) // 2])

  def half_a_row(lines, row):
    lines._file.write('{"step": 1, "lo')
    lines._file.flush()

  monkeypatch.setattr(
      atomic, 'write_text', breaking(atomic.write_text, half_a_file))
  monkeypatch.setattr(
      log.JsonLines, 'write', breaking(log.JsonLines.write, half_a_row))
  return count


def num_writes(tmp_path):
  with pytest.MonkeyPatch.context() as monkeypatch:
    count = break_at(monkeypatch, 10**9, Killed())
    fake.train(tmp_path / 'counted')
  return count[0]


KILLED, FULL = Killed(), OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('by_turns', [
    (KILLED, None, None, FULL, None, None),
    pytest.param((KILLED,), marks=pytest.mark.slow),
    pytest.param((FULL,), marks=pytest.mark.slow)],
    ids=['kill-or-full', 'kill', 'full'])
def test_every_write_of_a_run_may_fail(tmp_path, unbroken, by_turns):
  total = num_writes(tmp_path)
  assert total >= 10  # config, versions, logs, rows, results
  for number in range(1, total + 1):
    folder, error = tmp_path / str(number), by_turns[number % len(by_turns)]
    if error is None:
      continue
    with pytest.MonkeyPatch.context() as monkeypatch:
      break_at(monkeypatch, number, error)
      with pytest.raises((Killed, errors.UserError)) as caught:
        fake.train(folder)
    if isinstance(error, OSError):
      assert 'No space left on device' in str(caught.value)
      assert str(folder) in str(caught.value)
    result = fake.train(folder)
    assert result.finished and result.step == fake.STEPS
    assert fake.left(folder) == fake.left(unbroken), number
    assert json.loads((folder / 'results.json').read_text())['steps'] == 4


def contents(folder):
  return {p: (p.stat().st_mtime_ns, p.read_bytes())
          for p in folder.rglob('*') if p.is_file()}


def test_a_start_of_a_finished_run_changes_nothing(tmp_path, capsys):
  first = fake.train(tmp_path)
  before = contents(tmp_path)
  again = fake.train(tmp_path)
  assert contents(tmp_path) == before
  assert again.finished and again.evaluation == first.evaluation
  assert 'nothing to do' in capsys.readouterr().out
  # Nor is the last evaluation logged twice when results.json was not written.
  (tmp_path / 'results.json').unlink()
  fake.train(tmp_path)
  assert fake.left(tmp_path)[2] == [
      {k: v for k, v in row.items() if not k.startswith(('time', 'mem'))}
      for row in log.rows(tmp_path / 'metrics.jsonl')]
  assert sum('knn/trained' in row for row in fake.left(tmp_path)[2]) == 1


@pytest.mark.parametrize('name, data', [
    ('config.json', b''), ('config.json', b'{"a": [1, '), ('config.json', b'5'),
    ('sources.json', b'\0\0\0'), ('sources.json', b'\xff'),
    ('sources.json', b'[]'), ('results.json', b''), ('results.json', b'[3]'),
    ('lock', b''), ('versions.json', b''), ('bad_images.jsonl', b'5\n\xff\0'),
    ('metrics.jsonl', b'\0\0\n[1]\n{"step"')])
def test_a_file_cut_short_is_a_sentence_or_made_again(
    tmp_path, unbroken, name, data, capsys):
  shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
  (tmp_path / name).write_bytes(data)
  try:
    result = fake.train(tmp_path)
  except errors.UserError as error:
    assert name in ('config.json', 'sources.json')
    assert str(tmp_path / name) in str(error) and 'remove it' in str(error)
    (tmp_path / name).unlink()  # what it says
    result = fake.train(tmp_path)
  else:
    if name == 'results.json':
      assert 'results.json is' in capsys.readouterr().err
  assert result.finished


HOLD = '''
import sys
from etils import epath
from dinojax.parallel import holder
with holder.Holder(epath.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
'''


def test_one_run_holds_a_workdir_and_a_kill_frees_it(tmp_path):
  fake.train(tmp_path / 'other')
  (tmp_path / 'run').mkdir()
  process = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(tmp_path / 'run')], text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert process.stdout.readline() == 'held\n'
  before = contents(tmp_path / 'run')
  with pytest.raises(errors.UserError, match=(
      rf'in use by process {process.pid} on .* since 20.*: wait')):
    fake.train(tmp_path / 'run')
  assert contents(tmp_path / 'run') == before
  process.kill()
  process.communicate()
  assert fake.train(tmp_path / 'run').finished


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
  def unknown(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(holder.fcntl, 'flock', unknown)
  assert fake.train(tmp_path).finished
  assert 'warning: ' in (text := capsys.readouterr().err)
  assert 'knows no locks' in text


def test_a_log_without_its_checkpoints_is_not_cut(tmp_path):
  fake.train(tmp_path)
  log_before = (tmp_path / 'metrics.jsonl').read_bytes()
  (tmp_path / 'checkpoints').rename(tmp_path / 'away')
  for _ in range(2):  # without the folder; with results.json away too
    with pytest.raises(errors.UserError, match=(
        r'tells of 4 steps .*holds no checkpoint.*begin anew on purpose')):
      fake.train(tmp_path)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == log_before
  (tmp_path / 'results.json').unlink()
  rows = [{'step': i, 'loss': 1.0} for i in range(1, 3 * fake.EVERY)]
  (tmp_path / 'metrics.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  with pytest.raises(errors.UserError, match='tells of 5 steps'):
    fake.train(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()  # what it says
  assert fake.train(tmp_path).finished


def test_a_workdir_that_is_removed_ends_the_run(tmp_path, monkeypatch):
  folder, real = tmp_path / 'run', fake.step

  def step(state, *args):
    if int(state['step']) == 2:
      folder.rename(tmp_path / 'gone')
    return real(state, *args)

  monkeypatch.setattr(fake, 'step', step)
  with pytest.raises(errors.UserError, match='removed or replaced.*step 4'):
    fake.train(folder)


def test_the_last_whole_checkpoint_is_taken(tmp_path, unbroken, capsys):
  fake.train(tmp_path)
  (tmp_path / 'results.json').unlink()
  for path in (tmp_path / 'checkpoints' / '4' / 'opt.student').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  assert fake.train(tmp_path).finished
  text = capsys.readouterr().err
  assert 'step 4' in text and 'opt.student cannot be read' in text
  assert f'kept as {tmp_path / "damaged" / "4"}' in text
  assert 'resumed from step 2' in text
  assert (tmp_path / 'damaged' / '4' / 'opt.student').is_dir()
  assert fake.left(tmp_path) == fake.left(unbroken)
  # None is whole: nothing is begun anew by itself.
  (tmp_path / 'results.json').unlink()
  for path in (tmp_path / 'checkpoints').rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      path.unlink()
  with pytest.raises(errors.UserError, match='no checkpoint .* is whole'):
    fake.train(tmp_path)


@pytest.mark.parametrize('below', ['', 'run'])
def test_a_file_where_the_workdir_is_to_be_is_a_sentence(tmp_path, below):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match=(
      'cannot be written: .*a file is where a folder is to be')):
    fake.train(tmp_path / 'file' / below)


def test_a_read_only_workdir_is_a_sentence(tmp_path, monkeypatch):
  fake.train(tmp_path)

  def read_only(*args, **_):
    raise OSError(errno.EROFS, 'Read-only file system')

  monkeypatch.setattr(atomic, 'write_text', read_only)
  monkeypatch.setattr(holder, 'open', read_only, raising=False)
  assert fake.train(tmp_path).finished  # its results are still read
  (tmp_path / 'results.json').unlink()
  with pytest.raises(errors.UserError, match=(
      f'--workdir={tmp_path} cannot be written: Read-only file system')):
    fake.train(tmp_path)


def test_the_advice_after_nan_works(tmp_path, monkeypatch):
  """Its checkpoint is one whose next step was finite; without, it says so."""
  fake.install(monkeypatch, nan_from=6)
  make = fake.config
  monkeypatch.setattr(fake, 'config', lambda: make() | {
      'train': make()['train'] | {'total_steps': 20}})
  with pytest.raises(errors.UserError) as caught:
    fake.train(tmp_path / 'late')
  text = str(caught.value)
  assert 'step 8: ' in text and 'Step 4 is the last' in text
  for flag in (f'--workdir={tmp_path}/late-again',
               f'--config.init.source={tmp_path}/late@4',
               '--config.init.part=both', '--config.schedules.lr.peak=0.0005'):
    assert f'\n  {flag}\n' in text
  assert (tmp_path / 'late' / 'checkpoints' / '4').is_dir()
  fake.install(monkeypatch, nan_from=2)
  with pytest.raises(errors.UserError, match='begin anew and more gently'):
    fake.train(tmp_path / 'early')


def test_a_closed_output_stops_nothing(tmp_path, monkeypatch):
  reader, writer = os.pipe()
  os.close(reader)
  from dinojax.core import output
  with os.fdopen(writer, 'w') as closed, contextlib.redirect_stdout(
      output.Steady(closed, 'stdout')):
    assert fake.train(tmp_path).finished
  assert assemble.train(fake.config(), str(tmp_path)).step == fake.STEPS


@pytest.mark.parametrize('first, held_steps', [(1, 1), (2, 2)])
def test_a_profile_holds_its_steps_and_no_evaluation_after_them(
    tmp_path, monkeypatch, first, held_steps):
  """Of four steps, each evaluated; the second window outlasts the run."""
  events, step = [], fake.step
  monkeypatch.setattr(
      fake, 'step', lambda *args: events.append('step') or step(*args))
  monkeypatch.setattr(while_training, 'make', lambda *_: (
      lambda number, emas, stop: events.append('evaluation') or {
          'knn/trained': 1.0}))
  monkeypatch.setattr(jax.profiler, 'start_trace', events.append)
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append('end'))
  config = fake.config() | {'knn': {'every_steps': 1}}
  config['log'] |= {
      'profile_start': first, 'profile_steps': 1 if first == 1 else 5}
  assert assemble.train(config, str(tmp_path)).finished
  begin = events.index(str(tmp_path / 'profile'))
  assert events[:begin].count('step') == first
  held = events[begin + 1:events.index('end')]
  # Evaluations between its steps are held, not the one after the last.
  assert held[-1] == 'step' and held.count('step') == held_steps
  assert events.count('end') == 1
