"""Shared memory, through which workers hand over rows."""

import math
import os
import shutil

from dinojax.data import crops as crops_lib

_FOLDER = '/dev/shm'
SIGBUS = -7  # a worker wrote where its share of memory had no page left
_SIGKILL = -9


def free_gib() -> float | None:
  """GiB that are free in it; None: this system has no such folder."""
  if not os.path.isdir(_FOLDER):
    return None
  return shutil.disk_usage(_FOLDER).free / 2**30


def need_gib(crops: crops_lib.Crops, num_channels: int, rows: int,
             num_workers: int) -> float:
  """GiB of the rows that are made in advance of their batch.

  Args:
    crops: numbers and sizes of an image's crops.
    num_channels: channels of a crop.
    rows: rows of a batch that this process makes.
    num_workers: processes that make them.
  """
  row = num_channels * max(
      made.num_global * (made.global_px ** 2 + (made.gram_px or 0) ** 2)
      + made.num_local * made.local_px ** 2
      for made in map(crops.of_size, range(max(len(crops.sizes), 1))))
  return (rows + 2 * num_workers) * row / 2**30


def advice(need: float, have: float | None) -> str:
  """How much there is, how much is needed, and what to do."""
  there = '' if have is None else (
      f'{_FOLDER}, the shared memory of the workers, has '
      f'{_size(have)} free, and the rows that are made in advance need about '
      f'{_size(need)}: ')
  return (f'{there}start the container with --shm-size='
          f'{max(math.ceil(2 * need), 1)}g or --ipc=host, lower '
          'data.num_workers or train.batch_size, or set data.num_workers=0 '
          '(threads of this process)')


def _size(gib: float) -> str:
  return f'{gib:.3g} GiB' if gib >= 1 else f'{gib * 1024:.3g} MiB'


def worker_died(code: int) -> str:
  """Why a worker may have ended with this exit code."""
  return {
      SIGBUS: 'a worker ended with SIGBUS: there was no shared memory left',
      _SIGKILL: 'a worker was killed (SIGKILL): mostly by the system, because '
                'memory ran out; lower data.num_workers, data.max_pixels or '
                'train.batch_size, or give the job more memory',
  }.get(code, f'a worker ended with exit code {code}')
