"""Correspondence, TokenCut and tracking from end to end, on miniatures."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from dinojax import commands
from dinojax.core import errors
from dinojax.evals import items
from dinojax.evals import registry
from dinojax.interop import store
from tests import forked
from tests.evals import matched
from tests.evals.sets import made
from tests.interop import cases

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('sets')


@pytest.fixture(scope='module')
def specs(root):
  return matched.sets(root)


@pytest.mark.slow  # make test has the same of other kinds of items
@pytest.mark.parametrize('name', matched.ASKED)
def test_rows_are_the_same_on_one_device_and_on_eight(specs, name):
  few, many = (matched.columns(matched.measure(name, specs[name], devices))
               for devices in (jax.devices()[:1], None))
  assert few.keys() == many.keys()
  for key in few:
    np.testing.assert_array_equal(few[key], many[key], err_msg=key)


def test_an_image_is_found_in_itself(tmp_path):
  """Every patch of an image is most like itself, at its centre."""
  Image.fromarray(np.random.default_rng(0).integers(
      0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / 'h.png')
  (tmp_path / 'I.txt').write_text('1,0,0\n0,1,0\n0,0,1')
  spec = 'homographies:' + made.table(tmp_path / 'pairs.csv', [
      {'image1': 'h.png', 'image2': 'h.png', 'homography': 'I.txt'}])
  alone, = matched.measure('correspondence', (spec,), px=(0.01, 2.0))
  assert alone.rows['matches'] == [64]
  assert alone.scores() == {'recall@0.01px': 100.0, 'recall@2px': 100.0}
  # Corners are half a patch off, which is 5.7 pixels here.
  other, = matched.measure('correspondence', (spec,), px=(5.0, 6.0),
                           places='corners')
  assert other.scores()['recall@5px'] == 0.0


def test_keypoints_of_what_moved_by_patches_are_found(tmp_path):
  """Keypoints at centres of patches that have moved by whole patches."""
  rng = np.random.default_rng(0)
  colours = np.kron(rng.integers(0, 256, (8, 16, 3)),
                    np.ones((8, 8, 1))).astype(np.uint8)
  rows = []
  for i in range(2):
    Image.fromarray(colours[:, 16 * i:16 * i + 64]).save(tmp_path / f'{i}.png')
    rows += [{'image': f'{i}.png', 'part': part, 'x': 28 + 8 * part - 16 * i,
              'y': 20, 'x0': 0, 'y0': 0, 'x1': 20, 'y1': 20}
             for part in range(3)]
  measured, = matched.measure('correspondence', (
      'keypoints:' + made.table(tmp_path / 'p.csv', rows),), config=(
          dataclasses.replace(matched.CONFIG, depth=1, num_registers=0)))
  assert measured.scores()['PCK@0.1'] == 100.0
  assert measured.rows['error'].max() < 0.01
  assert list(measured.rows['matches']) == [3, 3]
  assert list(measured.rows['source']) == [0, 1]


def test_spair_is_a_mean_over_classes_and_by_viewpoint(specs):
  measured = matched.measure('correspondence', specs['correspondence'][2:3])[0]
  assert {'PCK@0.1', 'PCK@0.1, viewpoint 0', 'PCK@0.1, viewpoint 1'} <= (
      measured.scores().keys())
  rows = {'matches': np.array([1.0, 9, 10]), 'group': np.array([0.0, 0, 1]),
          'part': np.array([0.0, 1, 1]), 'right 0.1': np.array([1.0, 4, 1])}
  work = registry.PROTOCOLS['correspondence'].transfer.Keypoints.__new__(
      registry.PROTOCOLS['correspondence'].transfer.Keypoints)
  work._settings = registry.read({'correspondence': {
      'alpha': (0.1,)}}).correspondence
  work._test = type('Test', (), {'part': 'viewpoint'})
  assert work.score(rows) == pytest.approx({
      'PCK@0.1': 30.0, 'PCK@0.1, viewpoint 0': 100.0,
      'PCK@0.1, viewpoint 1': (100 * 4 / 9 + 10) / 2})


def test_navi_of_the_same_camera_is_exact(tmp_path):
  """Two copies of a photograph: every point is itself."""
  folder = made.navi(tmp_path)
  scene = folder / 'cup/wild_set'
  for name, suffix in (('images', 'jpg'), ('depth', 'png')):
    (scene / f'{name}/001.{suffix}').write_bytes(
        (scene / f'{name}/000.{suffix}').read_bytes())
  notes = scene / 'annotations.json'
  notes.write_text(notes.read_text().replace('100.0', '0.0'))
  measured, = matched.measure('correspondence', (f'navi:{folder}',))
  scores = measured.scores()
  assert measured.rows['matches'] == [20] and measured.rows['degrees'] == [0]
  assert scores['recall@1cm'] == scores['recall@2cm, 0–30°'] == 100.0


def test_a_bright_square_is_discovered(tmp_path):
  """A uniform square on a uniform ground: nothing else can be cut."""
  out = np.full((64, 96, 3), 30, np.uint8)
  out[16:40, 40:72] = (250, 240, 40)
  Image.fromarray(out).save(tmp_path / 'a.png')
  spec = 'boxes:' + made.table(tmp_path / 'boxes.csv', [
      {'image': 'a.png', 'xmin': 40, 'ymin': 16, 'xmax': 72, 'ymax': 40}])
  config = dataclasses.replace(matched.CONFIG, depth=1)
  for features in ('keys', 'patches'):
    measured, = matched.measure('tokencut', (spec,), config=config,
                                features=features, tau=0.9)
    assert list(measured.rows['box'][0]) == [40, 16, 72, 40]
    assert measured.scores() == {'CorLoc': 100.0, 'IoU': 100.0}
    assert measured.facts['not converged'] == 0


def test_a_still_video_keeps_its_masks(tmp_path):
  made.videos(tmp_path, names=('a',))
  for kind in ('JPEGImages', 'Annotations'):
    files = sorted((tmp_path / kind / 'a').iterdir())
    for file in files[1:]:
      file.write_bytes(files[0].read_bytes())
  for output in ('v3', 'v1'):
    measured, = matched.measure(
        'tracking', (f'videos:{tmp_path}',), top_k=1, output=output)
    assert measured.scores()['J, 48 px'] > (99 if output == 'v3' else 85)
  assert list(measured.pictures) == ['a']


@pytest.mark.parametrize('name, asked, message', [
    ('tokencut', {'features': 'values'}, 'features=values is not known'),
    ('tracking', {'neighborhood': 'star'}, 'neighborhood=star is not known'),
    ('tracking', {'short_patches': ()}, r'short_patches=\(\) are no sizes'),
    ('correspondence', {'places': 'left'}, 'places=left is not known')])
def test_values_that_are_not_known_are_refused(specs, name, asked, message):
  with pytest.raises(errors.UserError, match=message):
    matched.measure(name, specs[name], **asked)


def test_a_convnext_has_no_keys(specs):
  with pytest.raises(errors.UserError, match='ConvNeXt has no attention'):
    matched.measure('tokencut', specs['tokencut'], config=cases.CONVNEXT)


@pytest.mark.slow  # a compilation more: maps of another family
def test_a_convnext_has_maps(specs):
  measured = matched.measure('tracking', specs['tracking'][:1],
                             config=cases.CONVNEXT, short_patches=(4,))
  assert 0 <= measured[0].scores()['J, 128 px'] <= 100


def test_every_process_measures_a_part(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  shares = []
  for index in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda i=index: i)
    shares.append(list(items.share(7)))
  assert sum(shares, []) == list(range(7))
  assert {len(share) for share in shares} == {2, 3}


@pytest.mark.parametrize('seconds', [0.0, 1e6])
def test_items_that_are_measured_are_kept(tmp_path, monkeypatch, seconds):
  """Written one by one, or all at the end of a start."""
  monkeypatch.setattr(items, '_SAVE_S', seconds)
  begun, passed = [], []

  def measure(item, until=9):
    if item == until:
      raise KeyboardInterrupt
    begun.append(item)
    return ({'a, b': np.full(item % 3, item)},
            {f'{item}': np.full((1, 1, 3), item, np.uint8)} if item < 2 else {})

  whole = items.rows(9, measure)
  begun.clear()
  for until in (3, 3, 7):
    with pytest.raises(KeyboardInterrupt):
      items.rows(9, lambda i, until=until: measure(i, until), folder=tmp_path)
  rows, pictures = items.rows(
      9, measure, folder=tmp_path, passed=passed.append)
  assert begun == list(range(9)) and passed == list(range(7))
  jax.tree.map(np.testing.assert_array_equal, (rows, pictures), whole)
  assert rows['a, b'].tolist() == [1, 2, 2, 4, 5, 5, 7, 8, 8]
  begun.clear()
  again = items.rows(9, measure, folder=tmp_path)
  assert not begun
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_maps_are_read_once_and_forgotten(monkeypatch):
  monkeypatch.setattr(items, '_KEPT_MAPS', 2)
  read = []
  monkeypatch.setattr(items, 'read', lambda model, images, spec: [
      read.append(int(image)) or {'map': image} for image in images])
  model = type('Model', (), {'mesh': type('Mesh', (), {'size': 2})})
  order = [0, 1, 0, 2, 3, 4, 5, 0]
  maps = items.Maps(model, lambda i: i, None, order, lambda count: None)
  assert [int(maps[i]) for i in order] == order
  assert read == [0, 1, 2, 3, 4, 5, 0]


def test_the_command_prints_a_table_and_draws(specs, tmp_path, capsys):
  store.save(str(tmp_path / 'model'), cases.weights(matched.CONFIG))
  test = ','.join(f"'{spec}'" for spec in specs['correspondence'][:2])
  assert commands.run('evaluate', [
      f'--model={tmp_path}/model', '--protocols=correspondence,tracking',
      f'--out={tmp_path}/out', f'--compile_cache={forked.CACHE}',
      f'--config.correspondence.test=({test})',
      '--config.correspondence.keypoint_patches=8',
      f"--config.tracking.test=('{specs['tracking'][0]}',)",
      '--config.tracking.short_patches=(6,)']) == 0
  printed = capsys.readouterr().out
  assert '| PCK@0.1 |' in printed and '| recall@25px |' in printed
  assert printed.count('| J&F, ') == 1
  assert len(list((tmp_path / 'out/pictures').iterdir())) == 4


def _in_two(root, out):
  """Output of two processes of four devices each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  both = [subprocess.Popen(
      [sys.executable, '-m', 'tests.evals.matched', str(root), str(out)],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env=os.environ | {
          'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': '2',
          'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
          'JAX_PROCESS_ID': str(i),
          'JAX_COMPILATION_CACHE_DIR': str(forked.CACHE)}) for i in range(2)]
  return [process.communicate(timeout=400)[0] for process in both]


@pytest.mark.slow  # two processes: same rows, and an error ends both
def test_two_processes_give_the_same_rows_and_end_together(
    specs, root, tmp_path):
  told = _in_two(root, tmp_path / 'two.npz')
  assert ['measured' in text for text in told] == [True, True], told
  with np.load(tmp_path / 'two.npz') as two:
    for name in specs:
      for key, array in matched.columns(
          matched.measure(name, specs[name])).items():
        np.testing.assert_array_equal(
            two[f'{name} {key}'.replace('/', '|')], array, err_msg=key)
  # The last video is the second process's.
  file = root / 'DAVIS/Annotations/480p/bear/00003.png'
  whole = file.read_bytes()
  try:
    file.write_bytes(whole[:60])
    told = _in_two(root, tmp_path / 'none.npz')
  finally:
    file.write_bytes(whole)
  assert 'error: process 1 failed:' in told[0] and '00003.png' in told[0]
  assert 'error:' in told[1] and '00003.png' in told[1], told
