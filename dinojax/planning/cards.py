"""Batches that fit a GPU, by config and memory: estimated, not measured.

  python -m dinojax.planning.cards            # the table of docs/your_data.md
  python -m dinojax.planning.cards --photos   # batches of configs/photos.py

Uses the estimate of `dinojax doctor` (planning/memory.py); compiles nothing.
"""

import argparse
from collections.abc import Iterator
import dataclasses
from typing import Any

import jax

from dinojax.kernels import attention
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import memory
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib

CARDS_GIB = (8, 16, 24, 80)
# JAX gives programs three quarters of a card; the rest is left to others.
SHARE = 0.75


def as_on_gpu(s: settings_lib.Settings) -> settings_lib.Settings:
  """Settings with what 'auto' means on a GPU, traceable without one."""
  model = s.model.for_platform('gpu')
  if model.has_attention and model.attention == 'cudnn':
    model = dataclasses.replace(model, attention=attention.PLANNED)
  return dataclasses.replace(s, model=model)


def method_on_gpu(config: Any, mesh: jax.sharding.Mesh) -> method_lib.Method:
  """The method of a config, as one GPU would run it."""
  return method_lib.build(as_on_gpu(settings_lib.read(config)), mesh, 100)


def batch_for(method: method_lib.Method, mesh: jax.sharding.Mesh,
              free_gib: float) -> int | None:
  """The largest power of two that fits, of whole groups; None: none does."""
  largest = memory.fitting_batch(method, mesh, free_gib)
  return largest and 2 ** (largest.bit_length() - 1)


def table(configs: dict[str, Any], mesh: jax.sharding.Mesh
          ) -> Iterator[str]:
  """Lines of a Markdown table: batches by config and card."""
  yield '| config | ' + ' | '.join(f'{n} GB' for n in CARDS_GIB) + ' |'
  yield '|---' * (1 + len(CARDS_GIB)) + '|'
  for name, config in configs.items():
    method = method_on_gpu(config, mesh)
    cells = [batch_for(method, mesh, SHARE * card) or '–'
             for card in CARDS_GIB]
    yield f'| {name} | ' + ' | '.join(map(str, cells)) + ' |'


def cards(mesh: jax.sharding.Mesh) -> Iterator[str]:
  """The table of the documentation."""
  from dinojax.configs import photos
  from dinojax.configs import vitb
  from dinojax.configs import vitl
  from dinojax.configs import vits

  def blocks(config):
    config.model.remat = 'blocks'
    return config

  def short(config, batch=256):
    config.model.patch_px, config.crops.local_px = 14, 98
    config.train.batch_size = batch
    return config

  configs = {
      '`photos.py:ti,128`': photos.get_config('ti,128'),
      '`photos.py:s,128`': photos.get_config('s,128'),
      '`vits.py`': vits.get_config(), '`vitb.py`': vitb.get_config(),
      '`vitb.py`, `model.remat=blocks`': blocks(vitb.get_config()),
      '`vitl.py`, patches of 14 px': short(vitl.get_config())}
  for config in configs.values():
    config.train.group_images = config.koleo.group_images = 8
  yield from table(configs, mesh)


def photo_batches(mesh: jax.sharding.Mesh) -> Iterator[str]:
  """The batches of configs/photos.py, which are float32 on a CPU."""
  from dinojax.configs import photos
  for size in ('ti', 's'):
    for px in (96, 128, 160):
      settings = settings_lib.read(photos.get_config(f'{size},{px}'))
      method = method_lib.build(settings, mesh, 100)
      for gib in (4, 8, 16, 24):
        batch = batch_for(method, mesh, SHARE * gib)
        yield f'{size}, {px} px, {gib} GiB: {min(batch or 16, 256)}'


def main():
  """Prints a table."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--photos', action='store_true',
                      help='batches of configs/photos.py instead')
  lines = photo_batches if parser.parse_args().photos else cards
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  with mesh_lib.activate(mesh):
    for line in lines(mesh):
      print(line, flush=True)


if __name__ == '__main__':
  main()
