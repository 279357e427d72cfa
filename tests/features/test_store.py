"""Tables of features continue after a kill, and only where they may."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.data import sources
from dinojax.features import backbone as backbone_lib
from dinojax.features import embedding
from dinojax.features import tables
from tests.features import embedded
from tests.interop import cases

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}


@pytest.mark.parametrize('choice', [embedded.CROP, embedded.WHOLE])
@pytest.mark.parametrize('kind', ['npz', 'parquet'])
def test_a_killed_run_ends_in_the_same_bytes(
    model, folder, tmp_path, monkeypatch, choice, kind):
  seen = embedded.watched(monkeypatch)
  (tmp_path / 'whole').mkdir()
  embedded.extract(model, folder, tmp_path / 'whole' / f'a.{kind}', choice,
                   images_per_shard=3)
  whole = len(seen)

  def stop(done):
    if done > 7:  # in the third of four shards
      raise embedded.Killed

  out = tmp_path / f'a.{kind}'
  with pytest.raises(embedded.Killed):
    embedded.extract(model, folder, out, choice, images_per_shard=3,
                     batch_size=4, progress=stop)
  kept = sorted((tmp_path / f'a.{kind}.shards').glob('shard-*'))
  assert [path.name for path in kept] == [
      'shard-00000-of-00004.npz', 'shard-00001-of-00004.npz']
  times, messages = [path.stat().st_mtime_ns for path in kept], []
  seen.clear()

  def check_kept(done):
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert done >= 6

  embedded.extract(model, folder, out, choice, images_per_shard=3,
                   progress=check_kept, say=messages.append)
  assert any('continuing after 6 of 11 images' in line for line in messages)
  assert 0 < len(seen) < whole
  assert out.read_bytes() == (
      tmp_path / 'whole' / f'a.{kind}').read_bytes()
  seen.clear()
  embedded.extract(
      model, folder, out, choice, images_per_shard=3, say=messages.append)
  assert 'complete' in messages[-1] and not seen


def test_a_half_written_shard_is_computed_again(model, folder, tmp_path):
  def stop(done):
    if done > 8:
      raise embedded.Killed

  out = tmp_path / 'a.npz'
  with pytest.raises(embedded.Killed):
    embedded.extract(model, folder, out, progress=stop)
  shard = tmp_path / 'a.npz.shards' / 'shard-00001-of-00003.npz'
  shard.write_bytes(shard.read_bytes()[:-50])
  embedded.extract(model, folder, out)
  embedded.extract(model, folder, tmp_path / 'b.npz')
  assert out.read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_other_settings_are_refused_by_name(model, folder, tmp_path):
  out = tmp_path / 'a.npz'

  def refuse(text, model=model, choice=embedded.CROP, **kwargs):
    with pytest.raises(errors.UserError, match=text):
      embedded.extract(model, folder, out, choice, **kwargs)

  def stop(done):
    if done > 4:
      raise embedded.Killed

  def refuse_others():
    refuse("features was 'cls' and is 'patches'",
           choice=embedding.Choice('patches', resize_px=32, crop_px=28))
    refuse('crop_px was 28 and is 14; images_per_shard was 4 and is 5',
           choice=embedding.Choice(resize_px=32, crop_px=14),
           images_per_shard=5)
    refuse("model was 'tiny [0-9a-f]+' and is 'tiny [0-9a-f]+'",
           model=backbone_lib.Backbone.of(
               cases.weights(embedded.CONFIG, seed=1)),
           model_name='tiny')

  with pytest.raises(embedded.Killed):
    embedded.extract(model, folder, out, model_name='tiny', progress=stop)
  refuse_others()
  os.rename(folder / '10.png', folder / '11.png')
  refuse(r'was 10.png and is 11.png', model_name='tiny')
  os.rename(folder / '11.png', folder / '10.png')
  os.rename(folder / '10.png', folder.parent / '10.png')
  refuse('images was 11 and is 10', model_name='tiny')
  os.rename(folder.parent / '10.png', folder / '10.png')
  embedded.extract(model, folder, out, model_name='tiny')
  refuse_others()
  out.write_bytes(b'mine')
  refuse('was not written by')
  assert out.read_bytes() == b'mine'


def test_two_runs_do_not_share_a_folder(model, folder, tmp_path):
  def second(done):
    with pytest.raises(errors.UserError, match='in use by another run'):
      embedded.extract(model, folder, tmp_path / 'a.npz')
    raise embedded.Killed

  with pytest.raises(embedded.Killed):
    embedded.extract(model, folder, tmp_path / 'a.npz', progress=second)


def test_joining_holds_one_shard_at_a_time(tmp_path):
  rng, parts = np.random.default_rng(0), []
  for i in range(24):
    parts.append(str(tmp_path / f'{i}.npz'))
    tables.write_shard(parts[-1], {
        'names': np.array([f'{i}/{j}' for j in range(256)]),
        'labels': np.full((256,), -1),
        'features': rng.normal(size=(256, 1024)).astype(np.float32),  # 1 MiB
        'bad': np.zeros((0, 2), np.str_), 'index': np.arange(256)})
  tables.join(str(tmp_path / 'warm.parquet'), parts[:1], {}, ())
  for kind in ('npz', 'parquet'):
    out = str(tmp_path / f'a.{kind}')
    tracemalloc.start()
    tables.join(out, parts, {'a': 1}, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20, kind
    assert tables.summary(out) == (24 * 256, [])
    assert tables.read_settings(out) == {'a': 1}
  assert 'labels' not in embedded.load(tmp_path / 'a.npz')


def test_pyarrow_is_named_when_it_is_missing(monkeypatch):
  monkeypatch.setattr(tables.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError,
                     match=r'pip install "dinojax\[parquet\]"'):
    tables.suffix('a.parquet')


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  for out, text in ((tmp_path / 'file' / 'a.npz', 'cannot be written'),
                    ('gs://x/a.npz', 'not a local path')):
    with pytest.raises(errors.UserError, match=text):
      atomic.check_out(str(out))


@pytest.mark.slow  # make test interrupts it in this process
def test_the_command_survives_a_kill(model, weights, tmp_path):
  out = tmp_path / 'new' / 'a.npz'
  command = [
      sys.executable, '-m', 'dinojax', 'embed',
      f'--model={weights}', '--source=photos:validation', f'--out={out}',
      '--resize_px=56', '--crop_px=56', '--images_per_shard=8',
      '--batch_size=8', '--num_threads=1',
      f'--compile_cache={ROOT / ".jax_cache"}']
  process = subprocess.Popen(command, env=ENVIRONMENT)
  while process.poll() is None and not list(
      out.parent.glob('*.shards/shard-00001*')):
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not out.exists()
  # Workers change nothing, and may be others than before.
  again = subprocess.run([*command, '--num_workers=1'], env=ENVIRONMENT,
                         text=True, capture_output=True)
  assert again.returncode == 0, again.stderr
  assert 'continuing after' in again.stderr and 'ETA 0s' in again.stderr
  source = sources.open_source('photos:validation')
  assert f'{len(source)} images in {out}, 0 could not' in again.stdout
  table = embedded.load(out)
  assert table['names'].tolist() == [
      source[i].name for i in range(len(source))]
  some = range(0, len(source), 20)
  images = model.preprocess(
      [source[i].image for i in some], resize_px=56, crop_px=56)
  np.testing.assert_allclose(
      table['features'][some], model(images).cls, atol=1e-4)
  assert os.listdir(out.parent) == ['a.npz']
