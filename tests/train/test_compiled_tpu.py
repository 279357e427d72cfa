"""The step as the TPU compiler makes it; needs libtpu, and no TPU."""

import functools
import importlib.util
import math
import re

import jax
import pytest

from dinojax.engine import program
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import topologies
from dinojax.planning import collectives
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib
from tests.train import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('libtpu') is None,
        reason='libtpu is not installed: pip install libtpu')]
WIDTH = 256


@functools.cache
def text():
  """Of the step on eight v5e, all weights split in four."""
  settings = settings_lib.read(tiny.config(
      model__embed_dim=WIDTH, model__num_heads=4, model__depth=2,
      model__dtype='bfloat16', model__attention='auto',
      model__packing='auto', model__remat='blocks',
      train__batch_size=32, train__group_images=4))
  mesh = mesh_lib.make(2, 4, devices=topologies.devices('v5e:2x4'))
  with mesh_lib.activate(mesh):
    method = method_lib.build(settings, mesh, epoch_steps=100)
    lowered = program.planned(
        pretraining.Pretraining(method, mesh), mesh).traced.lower()
  # A program of devices that are not here cannot be kept.
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    return lowered.compile().as_text()
  finally:
    jax.config.update('jax_enable_compilation_cache', True)


def large_collectives(kind):
  """Collectives of the size of a block's weights or more."""
  return [collective for collective in collectives.of_program(text())
          if collective.kind == kind and collective.elements >= WIDTH * WIDTH]


def test_attention_is_the_kernel():
  assert text().count('vit_attention_backward') > 0


def test_weights_are_gathered_in_bfloat16():
  gathers = large_collectives('all-gather')
  # Four matrices of two blocks, for the teacher, forward, and again backward.
  assert sum(collective.count for collective in gathers) >= 4 * 2 * 3
  assert {collective.dtype for collective in gathers} == {'bf16'}


def test_gradients_of_weights_are_scattered_in_float32():
  scatters = large_collectives('reduce-scatter')
  assert sum(collective.count for collective in scatters) >= 4 * 2
  assert {collective.dtype for collective in scatters} == {'f32'}
  # What is summed whole is summed once, over `data`, and never in a loop.
  assert all(collective.count == 1
             for collective in large_collectives('all-reduce'))


def test_sums_over_rows_are_float32():
  """Gradients of all vectors; a sum over an axis of one is no sum."""
  shapes = dict(re.findall(r'%?([\w.-]+) = \w+\[([\d,]*)\]', text()))
  sums = re.findall(
      r'= (\w+)\[([\d,]+)\]\S* reduce\(%?([\w.-]+),', text())
  size = lambda shape: math.prod(map(int, shape.split(',')))
  vectors = [(dtype, size(shapes[of]) // size(shape))
             for dtype, shape, of in sums if ',' not in shape]
  assert sum(dtype == 'f32' and rows > 1 for dtype, rows in vectors) > 20
  assert not [rows for dtype, rows in vectors if dtype == 'bf16' and rows > 1]


def test_nothing_goes_from_all_to_all():
  assert not large_collectives('all-to-all')
