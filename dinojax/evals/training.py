"""Training of heads within a protocol, by the loop that pretrains.

A stop leaves the step that was saved, and the same command goes on from it.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import examples as examples_lib
from dinojax.data import pipeline
from dinojax.engine import loop
from dinojax.engine import report
from dinojax.evals import protocol
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import fit as fit_lib

SEED = 0
_SAVES = 4  # checkpoints of a training


@dataclasses.dataclass(frozen=True)
class Batches:
  """Batches of a training.

  Attributes:
    shapes: shapes and shardings of what the host sends.
    make: numpy batches of this process from a step on.
    num_images: images of a step.
  """

  shapes: tree.Tree
  make: Callable[[int], Iterator[dict]]
  num_images: int


def padded(num_images: int, mesh: jax.sharding.Mesh, group: int = 1) -> int:
  """Rows of a batch of so many images: as many groups for every device."""
  unit = mesh.size * group
  return -(-num_images // unit) * unit


def from_images(job: protocol.Job, source: examples_lib.Items,
                prepare: Callable[[Any, np.random.Generator], dict],
                num_images: int, *, group_images: int = 1) -> Batches:
  """Batches of images that are read anew in every epoch.

  Args:
    job: model, and how images are read.
    source: records.
    prepare: see Examples; `image` [y, x, c] uint8 is normalised on the
      devices, floats are taken as they are.
    num_images: images of a step.
    group_images: images of which a device has a multiple.

  Raises:
    UserError: no record can be read.
  """
  mesh = job.model.mesh
  plan = examples_lib.Examples(
      source, prepare, min(num_images, len(source)),
      padded(min(num_images, len(source)), mesh, group_images), SEED)
  row = plan.collate([plan.sample(0)])
  row.pop('problems')
  shapes = jax.tree.map(
      lambda x: fit_lib.rows(mesh, jnp.dtype(x.dtype), plan.batch_size,
                             *x.shape[1:]), row)

  def make(step: int) -> Iterator[dict]:
    job.progress(step * plan.num_images)
    with contextlib.closing(pipeline.train_batches(
        plan, step, process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=job.reading.num_workers,
        num_threads=job.reading.num_threads)) as rows:
      for batch in rows:
        job.progress(plan.num_images)  # nobody comes back after the last one
        yield batch

  return Batches(shapes, make, plan.num_images)


def train(job: protocol.Job, fit: fit_lib.Fit, batches: Batches, steps: int,
          name: str = 'heads') -> dict:
  """The state after the last step; what a stop left is continued.

  Args:
    job: where, and on what.
    fit: the heads.
    batches: images and labels that they learn from.
    steps: length.
    name: folder within the job's.

  Raises:
    Stopped: a signal ended the training, whose step is saved.
  """
  mesh = job.model.mesh
  if job.nested:
    return _nested(job, job.nested, fit, batches, steps)
  with mesh_lib.activate(mesh):
    result = loop.run(loop.Job(
        trainable=fit, mesh=mesh, workdir=job.folder / name, seed=SEED,
        total_steps=steps, checkpoint_steps=max(steps // _SAVES, 1), keep=1,
        batches=batches.make,
        log=report.Options(batch_size=batches.num_images,
                           every_steps=max(steps // 10, 1)), info={}))
  if not result.finished:
    raise errors.Stopped
  return result.state


def _nested(job: protocol.Job, nested: protocol.Nested, fit: fit_lib.Fit,
            batches: Batches, steps: int) -> dict:
  """The state after the last step, of a training within a run.

  Raises:
    Stopped: the run is to stop, which is asked after every step; or it is
      only planned.
  """
  if nested.plan:
    nested.plan(fit)
    raise errors.Stopped
  state = fit.enter(fit.create(jax.random.key(SEED)), 'heads')
  key = (fit.name, str(batches.shapes), steps)
  if key not in nested.programs:
    # The programs outlive these weights, and are not to hold them.
    nested.programs[key] = _programs(fit.without_weights())
  (prepare, step), told = nested.programs[key], set()
  with contextlib.closing(batches.make(0)) as made:
    for number in range(steps):
      batch = next(made)
      for problem in batch.pop('problems', ()):
        if problem['name'] not in told:
          told.add(problem['name'])
          job.say('{source}: {name} is left out of the training of heads: '
                  '{reason}'.format_map(problem))
      rows = processes.to_devices(batch, job.model.mesh)
      state, _ = step(state, prepare(rows, np.int32(number)))
      if nested.stop():
        raise errors.Stopped
  return state


def _programs(fit: fit_lib.Fit) -> tuple[Callable, Callable]:
  """The compiled preparation and step of heads."""
  return (jax.jit(functools.partial(fit.prepare, variant='heads')),
          jax.jit(functools.partial(fit.step, variant='heads'),
                  donate_argnums=0, compiler_options=(
                      mesh_lib.compiler_options(fit.model.mesh))))
