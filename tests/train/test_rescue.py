"""What a run says when it cannot go on."""

import dataclasses
import errno
import os
import signal

from etils import epath
import pytest

from dinojax.data import shared_memory
from dinojax.engine import rescue as engine_rescue
from dinojax.train import rescue
from dinojax.train import settings as settings_lib
from tests.train import tiny

WORKDIR = epath.Path('/runs/a')


def settings(workers=0):
  return settings_lib.read(tiny.config(data__num_workers=workers))


def os_error(number, name=None):
  return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize('error, parts', [
    (os_error(errno.ENOSPC, '/runs/a/metrics.jsonl'),
     ['/runs/a could not be written: No space left', '/runs/a/metrics.jsonl',
      'resumes from step 40']),
    (os_error(errno.EFBIG), ['/runs/a could not be written: File too']),
    (os_error(errno.EROFS), ['/runs/a could not be written: Read-only']),
    (os_error(errno.EIO, '/data/x.jpg'),
     ['/data/x.jpg: Input/output error', 'is not at fault']),
    (os_error(errno.ECONNRESET), ['Connection reset', 'is not at fault'])])
def test_an_error_of_a_disk_names_whose_it_is(error, parts):
  text = str(engine_rescue.disk(error, WORKDIR, 40))
  for part in parts:
    assert part in text


def died(code):
  """As grain says it."""
  return RuntimeError(
      f'Grain worker process 1 was terminated unexpectedly with exit code '
      f'{code}')


@pytest.mark.parametrize('error, workers, parts', [
    (died(-signal.SIGBUS), 2, ['SIGBUS', '--shm-size=1g', 'num_workers=0']),
    (os_error(errno.ENOSPC), 2, ['hand over its rows: No space', '--shm-size']),
    (died(-signal.SIGKILL), 2, ['killed (SIGKILL)', 'data.max_pixels']),
    (died(3), 2, ['a worker ended with exit code 3']),
    (os_error(errno.EIO, '/data/x.tar'), 0,
     ['data.train cannot be read', '/data/x.tar'])])
def test_an_error_of_the_workers_says_what_helps(error, workers, parts):
  text = str(rescue.batches(error, settings(workers), 16))
  for part in parts:
    assert part in text


def test_what_is_not_known_is_no_mistake_of_the_users():
  assert rescue.batches(RuntimeError('x is not y'), settings(2), 16) is None


def test_shared_memory_is_counted_by_rows():
  crops = settings().crops
  row = 3 * (crops.num_global * crops.global_px ** 2
             + crops.num_local * crops.local_px ** 2)
  assert shared_memory.need_gib(crops, 3, 10, 2) == 14 * row / 2**30
  assert shared_memory.need_gib(crops, 1, 10, 2) == 14 * row / 3 / 2**30
  row += 3 * crops.num_global * 100 ** 2  # the largest of sizes, with Gram's
  several = dataclasses.replace(crops, sizes=(
      (crops.global_px, crops.local_px, 100, 0.1), (4, 4, None, 0.9)))
  assert shared_memory.need_gib(several, 3, 10, 2) == 14 * row / 2**30


@pytest.mark.parametrize('need, have, parts', [
    (3.2, 0.0625, ['64 MiB free', 'about 3.2 GiB', '--shm-size=7g']),
    (2e-5, 1e-5, ['0.0102 MiB free', 'about 0.0205 MiB', '--shm-size=1g']),
    (0.01, None, ['start the container', '--shm-size=1g'])])
def test_what_is_needed_is_a_flag_of_docker(need, have, parts):
  text = shared_memory.advice(need, have)
  for part in parts:
    assert part in text
  assert ('/dev/shm' in text) == (have is not None)
