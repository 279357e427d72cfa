"""`dinojax evaluate` of segments and texts: two processes are as one."""

import os
import socket

import pytest

from tests import forked
from tests.evals import drawn
from tests.evals import objects
from tests.evals import test_alignment
from tests.runs import test_dense_evaluation

SIZES = test_dense_evaluation.SIZES
world, run = test_alignment.world, test_alignment.run


def section(name, **values):
  return [f'--config.{name}.{key}={value}' for key, value in values.items()]


def words_of_segments(root):
  for part, count, seed in (('train', 12, 0), ('test', 5, 1)):
    objects.save(root / part, count, SIZES, seed)
  of = lambda part: (f'coco_panoptic:{root}/{part}/panoptic.json?images='
                     f'{root}/{part}/images')
  return ['--protocols=segments', *section(
      'segments', train=of('train'), test=f"('{of('test')}',)",
      num_queries=8, num_blocks=2, num_points=64, most_targets=5, steps=12,
      warmup_steps=3, batch_size=6, crop_px=64, learning_rate=3e-3,
      threshold=0.05, overlap=0.2, pictures=2)]


def words_of_texts(root, head, world):
  drawn.save(root, 'masks', 5, SIZES, 1)
  (root / 'classes.txt').write_text('red\ngreen\nblue')
  return ['--protocols=zero_shot,captions,open_vocabulary',
          f'--test=folder:{world}/classes',
          *section('zero_shot', head=head, crop_px=32, resize_px=32),
          *section('captions', head=head, crop_px=32, resize_px=32,
                   test=f"('csv:{world}/captions.csv',)"),
          *section('open_vocabulary', head=head, short_px=48, window_px=32,
                   stride_px=16, pictures=2, test=f"('masks:{root}',)")]


@pytest.mark.slow  # it adds two processes
@pytest.mark.parametrize('kind', ['segments', 'texts'])
def test_two_processes_are_as_one(kind, world, run, tmp_path):
  given = [f'--model={world}/model', f'--compile_cache={forked.CACHE}', *(
      words_of_segments(tmp_path) if kind == 'segments' else words_of_texts(
          tmp_path / 'scenes', f'{run}/head', world))]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  both = [test_dense_evaluation.start(
      [*given, f'--out={tmp_path}/two'],
      JAX_COORDINATOR_ADDRESS=f'localhost:{port}', JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i), XLA_FLAGS=os.environ['XLA_FLAGS']
      + ' --xla_force_host_platform_device_count=4') for i in range(2)]
  told = [process.communicate(timeout=400)[0] for process in both]
  assert [process.wait() for process in both] == [0, 0], told
  alone = test_dense_evaluation.start([*given, f'--out={tmp_path}/one'])
  text = alone.communicate(timeout=400)[0]
  assert alone.wait() == 0, text
  tables = [(tmp_path / name / 'results.md').read_text()
            for name in ('two', 'one')]
  assert tables[0] == tables[1] and ('PQ' in tables[0]) == (
      kind == 'segments'), tables
