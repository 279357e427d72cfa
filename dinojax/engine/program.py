"""A step as one compiled program: of a run, or before there is a machine."""

from collections.abc import Callable, Hashable
import dataclasses
import functools
import time

import jax
import numpy as np

from dinojax.core import tree
from dinojax.engine import trainable as trainable_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import sharding

Trainable = trainable_lib.Trainable


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled programs of a variant.

  Attributes:
    prepare: see Trainable.prepare.
    step: see Trainable.step.
  """

  prepare: Callable[[tree.Tree, np.int32], tree.Tree]
  step: Callable[[trainable_lib.State, tree.Tree], tuple[
      trainable_lib.State, trainable_lib.Metrics]]


def trace(trainable: Trainable, variant: Hashable, state: tree.Tree,
          rows: tree.Tree) -> jax.stages.Traced:
  """The step as equations, for these arrays or their shapes.

  JAX keeps what it traced of a function, and `_step_of` gives the same one for
  the same variant: a step that was traced for its memory is lowered at once.

  Args:
    trainable: method whose step is traced.
    variant: program of the step, see Trainable.variant.
    state: arrays or shapes; donated, and their shardings are kept.
    rows: a batch as `prepare` returns it.
  """
  keep = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(_step_of(trainable, variant), donate_argnums=0,
                 out_shardings=(keep, None)).trace(state, rows)


@functools.lru_cache(maxsize=2)
def _step_of(trainable: Trainable, variant: Hashable) -> Callable:
  return functools.partial(trainable.step, variant=variant)


def prepared(trainable: Trainable, variant: Hashable,
             mesh: jax.sharding.Mesh) -> tree.Tree:
  """Shapes and shardings of what the step takes of a batch."""
  out = jax.eval_shape(
      functools.partial(trainable.prepare, variant=variant),
      trainable.batch(variant), np.int32(0))
  return sharding.abstract_rows(out, mesh)


@dataclasses.dataclass(frozen=True)
class Planned:
  """The heaviest step of a run, of which no array exists.

  Attributes:
    variant: the program that it is.
    state: shapes and shardings of the state.
    rows: shapes and shardings of what the step takes of a batch.
    traced: the step as equations.
  """

  variant: Hashable
  state: trainable_lib.State
  rows: tree.Tree
  traced: jax.stages.Traced


def planned(trainable: Trainable, mesh: jax.sharding.Mesh) -> Planned:
  """Traces the heaviest step of a run, for a mesh that need not be here."""
  variant = trainable.heaviest()
  state = trainable.enter(trainable.saved({'step': 0}), variant)
  rows = prepared(trainable, variant, mesh)
  return Planned(
      variant, state, rows, trace(trainable, variant, state, rows))


def compile_all(trainable: Trainable, mesh: jax.sharding.Mesh,
                state: trainable_lib.State, start: int, end: int,
                say: Callable[[str], None], *,
                deterministic: bool = False) -> dict[Hashable, Programs]:
  """Compiles all programs of steps `start` to `end` before the first of them.

  Args:
    trainable: method whose programs are compiled.
    mesh: devices that the programs run on.
    state: state before step `start`.
    start: number of the next step.
    end: number of the step before which training ends.
    say: tells the user how long it took.
    deterministic: see mesh.compiler_options.
  """
  variants = trainable.variants(start, end)
  platform, out = mesh_lib.platform(mesh), {}
  options = mesh_lib.compiler_options(mesh, deterministic=deterministic)
  shapes = trainable_lib.shapes_of(state)
  for variant in variants:
    what = f'for {mesh.size} × {platform}' + (
        f': {variant}' if len(variants) > 1 else '')
    say(f'compiling {what} …')
    began = time.monotonic()
    step = trace(trainable, variant, trainable.enter(shapes, variant),
                 prepared(trainable, variant, mesh)).lower()
    prepare = jax.jit(functools.partial(trainable.prepare, variant=variant))
    out[variant] = Programs(
        prepare.lower(trainable.batch(variant), np.int32(0)).compile(),
        step.compile(options))
    say(f'compiled in {time.monotonic() - began:.1f}s {what}')
  return out
