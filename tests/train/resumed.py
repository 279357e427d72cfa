"""Part of the tiny run: from a checkpoint, or the start, to a checkpoint."""

import functools
import pathlib

import jax

from dinojax.engine import checkpoint
from dinojax.engine import items
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from tests.train import tiny


@functools.cache
def program(shape: tuple[int, int]):
  """Mesh, recipe, fresh state and step: compiled once a mesh."""
  settings = settings_lib.read(tiny.config(
      crops__num_local=0, ibot__separate_head=False))  # less to compile
  devices = jax.devices()[:shape[0] * shape[1]]
  mesh = mesh_lib.make(*shape, devices=devices)
  with mesh_lib.activate(mesh):
    return mesh, *tiny.compiled(settings, mesh)


def steps(workdir: pathlib.Path, shape: tuple[int, int], start: int,
          end: int) -> tuple[list[dict[str, float]], dict, dict]:
  """Steps `start` to `end` on a mesh of `shape`, then saved.

  Returns:
    Metrics of each; the first one's gradients, if it is the run's first; the
    last student.
  """
  mesh, recipe, state, step = program(shape)
  with mesh_lib.activate(mesh):
    saved, layout = checkpoint.Checkpoints(workdir), items.Current('students')
    if start:
      assert saved.latest() == start
      state = layout.join(saved.restore(
          layout.split(state_lib.abstract(recipe, mesh)), start))
    *result, state = tiny.follow(
        recipe.settings, mesh, state, step, start, end)
    saved.save(end, layout.split(state))
    saved.close()
  return tuple(result)
