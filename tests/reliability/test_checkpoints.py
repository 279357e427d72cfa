"""A checkpoint is what was saved, or it is said what is wrong with it."""

import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.engine import digests
from dinojax.engine import items
from dinojax.parallel import holder
from dinojax.parallel import mesh as mesh_lib

SHAPE = (2, 2)


def make(step, shape=SHAPE):
  """A small state with arrays of every kind."""
  mesh = mesh_lib.make(*shape, devices=jax.devices()[:shape[0] * shape[1]])
  at = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
  place = lambda x, *axes: jax.make_array_from_callback(
      x.shape, at(*axes), lambda index: x[index])
  rng = np.random.default_rng(step)
  draw = lambda: {
      'backbone': {'kernel': place(
          rng.normal(size=(8, 64)).astype(np.float32), 'fsdp'),
                   'bias': place(rng.normal(size=8).astype(np.float32))}}
  return {'step': place(np.asarray(step, np.int32)),
          'key': jax.jit(lambda: jax.random.key(step), out_shardings=at())(),
          'counters': {'bad_images': place(np.asarray(3, np.int32))},
          'students': {'a': {
              'student': draw(), 'ema': draw(),
              'opt': {'mu': draw(), 'nu': draw()},
              'counters': {'skipped_steps': place(np.asarray(1, np.int32))}}}}


LAYOUT = items.Current('students')
split = lambda step: LAYOUT.split(make(step))


def shapes(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, want):
  plain = lambda x: np.asarray(
      jax.random.key_data(x) if jax.dtypes.issubdtype(
          x.dtype, jax.dtypes.prng_key) else x)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(
      plain(a), plain(b)), got, want)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A workdir with steps 2, 4 and 6."""
  folder = tmp_path_factory.mktemp('whole')
  saved = checkpoint.Checkpoints(folder, keep=3, writes=True)
  for step in (2, 4, 6):
    saved.save(step, split(step))
  saved.close()
  return folder


@pytest.fixture
def run(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'run')


def restore(folder, shape=SHAPE, step=None):
  saved = checkpoint.Checkpoints(folder)
  return LAYOUT.join(saved.restore(
      LAYOUT.split(shapes(make(6, shape))), step or saved.latest()))


def largest(folder):
  return max((p for p in folder.rglob('d/*')), key=lambda p: p.stat().st_size)


def flip(path, seed=0):
  data = bytearray(path.read_bytes())
  data[random.Random(seed).randrange(len(data))] ^= 0x40
  path.write_bytes(bytes(data))


def test_a_whole_one_is_read_on_any_mesh(whole):
  for shape in ((1, 1), SHAPE, (1, 8)):
    assert_same(restore(whole, shape), make(6, shape))


def test_a_digest_is_of_the_values_and_their_places():
  x = np.random.default_rng(0).normal(size=(8, 3, 16)).astype(np.float32)
  want = int(digests.digest(jnp.asarray(x)))
  for spec in (jax.P('fsdp'), jax.P(None, None, ('data', 'fsdp'))):
    place = jax.NamedSharding(mesh_lib.make(2, 4), spec)
    assert int(digests.digest(jax.device_put(x, place))) == want
  other = x.copy()
  other.view(np.uint32)[3, 1, 7] ^= 1
  for changed in (other, x[::-1], -x, np.zeros_like(x), x.reshape(3, 8, 16)):
    assert int(digests.digest(jnp.asarray(changed))) != want


def test_one_changed_bit_of_a_weight_is_noticed(run):
  flip(largest(run / 'checkpoints' / '6' / 'student.a'))
  with pytest.raises(checkpoint.Damaged, match=(
      r'step 6 .*damaged: .*student')):
    restore(run)
  assert_same(restore(run, step=4), make(4))


FILES = ('_CHECKPOINT_METADATA', '_METADATA', 'manifest.ocdbt', 'd')


@pytest.mark.parametrize('kind', ['empty', 'cut', 'gone', 'bit'])
@pytest.mark.parametrize('name', FILES)
def test_damage_of_any_file_is_called_so(run, name, kind):
  """Or does no harm: then all is what was saved."""
  files = sorted(p for p in (run / 'checkpoints' / '6').rglob('*')
                 if p.is_file() and name in (p.name, p.parent.name))
  damage(files[(len(FILES) + len(kind)) % len(files)], kind)
  harmless_or_damaged(run)


def damage(path, kind, seed=0):
  data = path.read_bytes()
  if kind == 'gone':
    path.unlink()
  elif kind == 'bit':
    flip(path, seed)
  else:
    path.write_bytes(data[:0 if kind == 'empty' else len(data) // 2])


def harmless_or_damaged(run):
  try:
    state = restore(run)
  except checkpoint.Damaged as error:
    assert 'step 6' in str(error)
    return False
  assert_same(state, make(6))
  return True


@pytest.mark.slow  # every file of a checkpoint, not one of each kind
def test_damage_of_every_file_is_called_so(whole, tmp_path):
  files = [p.relative_to(whole)
           for p in sorted((whole / 'checkpoints' / '6').rglob('*'))
           if p.is_file()]
  kinds = [('empty', 0), ('cut', 0), ('gone', 0), *(
      ('bit', seed) for seed in range(2))]
  harmless = []
  for name, (kind, seed) in itertools.product(files, kinds):
    run = shutil.copytree(whole, tmp_path / 'run')
    if (run / name).stat().st_size:
      damage(run / name, kind, seed)
    if harmless_or_damaged(run):
      harmless.append((str(name), kind))
    shutil.rmtree(run)
  print(f'{len(files) * len(kinds)} tries, {len(harmless)} without harm')


def test_exchanged_parts_are_noticed(run):
  place = run / 'checkpoints' / '6'
  (place / 'student.a').rename(place / 'x')
  (place / 'ema.a').rename(place / 'student.a')
  (place / 'x').rename(place / 'ema.a')
  with pytest.raises(checkpoint.Damaged, match='digest differs'):
    restore(run)


@pytest.mark.parametrize('what', ['', 'meta'])
def test_another_step_under_this_name_is_noticed(run, what):
  old, new = (run / 'checkpoints' / step / what for step in '46')
  shutil.rmtree(new)
  shutil.copytree(old, new)
  with pytest.raises(checkpoint.Damaged, match=(
      'digest differs' if what else 'was saved as step 4')):
    restore(run)


def test_another_architecture_is_no_damage(run):
  for change in (
      lambda s: s['backbone'].pop('bias'),
      lambda s: s['backbone'].update(more=s['backbone']['bias']),
      lambda s: s['backbone'].update(bias=s['backbone']['kernel'])):
    wanted = shapes(split(6))
    change(wanted['student.a'])
    with pytest.raises(errors.UserError, match='does not fit this config'
                       ) as caught:
      checkpoint.Checkpoints(run).restore(wanted, 6)
    assert not isinstance(caught.value, checkpoint.Damaged)


def test_a_reader_hears_which_steps_are_whole(run):
  for step in '46':
    flip(largest(run / 'checkpoints' / step / 'ema.a'))
  saved = checkpoint.Checkpoints(run)
  with pytest.raises(checkpoint.Damaged, match=f'give {run}@2 in its place'):
    saved.restore_item('ema.a', shapes(split(6))['ema.a'])
  saved.restore_item('student.a', shapes(split(6))['student.a'])


def test_one_from_before_there_were_digests_is_read(run, capsys):
  note = run / 'checkpoints' / '6' / '_CHECKPOINT_METADATA'
  told = json.loads(note.read_text())
  for name in ('digests', 'step'):
    del told['custom_metadata'][name]
  note.write_text(json.dumps(told))
  assert_same(restore(run), make(6))
  assert 'step 6 has no digests' in capsys.readouterr().out


def test_a_reader_makes_no_folder(tmp_path):
  assert checkpoint.Checkpoints(tmp_path).latest() is None
  assert not list(tmp_path.iterdir())


def test_a_file_in_its_place_is_said(tmp_path):
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(errors.UserError, match='is a file'):
    checkpoint.Checkpoints(tmp_path)


SAID = 'said:'  # stands before what a process of two_processes says


def in_two_processes(folder, what):
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  root = pathlib.Path(__file__).parents[2]
  env = os.environ | {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_PROCESSES': '2', 'PYTHONPATH': str(root)}
  both = [subprocess.Popen(
      [sys.executable, '-m', 'tests.reliability.two_processes', str(folder),
       what], cwd=root, env=env | {'JAX_PROCESS_ID': str(i)}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
  texts = [process.communicate(timeout=200) for process in both]
  assert [process.returncode for process in both] == [0, 0], texts
  # Libraries write on stdout too, in the middle of lines of their own.
  return [[line.partition(SAID)[2].strip()
           for line in out.splitlines() if SAID in line]
          for out, _ in texts]


@pytest.mark.slow  # three starts of two processes
def test_processes_agree_on_damage_that_one_of_them_meets(tmp_path):
  assert in_two_processes(tmp_path, 'save') == [['saved']] * 2
  assert_same(restore(tmp_path, (1, 1)), make(6, (1, 1)))
  with holder.Holder(epath.Path(tmp_path)):
    assert in_two_processes(tmp_path, 'restore') == [['whole', 'in use']] * 2
  assert in_two_processes(tmp_path, 'damaged') == [
      ['damaged [4] True', 'held']] * 2


@pytest.mark.parametrize('is_said', [True, False])
def test_a_write_that_fails_is_said_once(tmp_path, monkeypatch, is_said):
  """Orbax raises it again when it is closed, and not as an OSError."""
  error = ValueError('RESOURCE_EXHAUSTED: No space left on device')

  def fail(*_, **__):
    raise error

  saved = checkpoint.Checkpoints(tmp_path, writes=True)
  monkeypatch.setattr(saved._manager, 'close', fail)
  if not is_said:
    with pytest.raises(errors.UserError, match='No space left'):
      saved.close()
    return
  monkeypatch.setattr(saved._manager, 'save_checkpointables_async', fail)
  with pytest.raises(errors.UserError, match='free space .*from step 0'):
    saved.save(2, split(2))
  saved.close()
