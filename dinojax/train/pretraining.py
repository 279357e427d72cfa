"""Pretraining, and distillation, as a Trainable."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.core import tree
from dinojax.engine import report
from dinojax.engine import trainable
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import batch as batch_lib
from dinojax.train import method as method_lib
from dinojax.train import monitor
from dinojax.train import sections
from dinojax.train import state as state_lib
from dinojax.train import step as step_lib
from dinojax.train import variants as variants_lib


class InitialWeights:
  """The weights that a run is given: here none."""

  def begin(self, state: dict) -> dict:
    """A fresh state whose students start from these weights."""
    return state

  def teacher(self) -> tree.Tree | None:
    """The parameters of a frozen teacher, once; None: there is none."""
    return None

  def gram(self, ema: tree.Tree) -> tree.Tree | None:
    """A Gram teacher's backbone like that of the EMA; None: a copy of it."""
    return None


class Pretraining:
  """Students that learn from their EMA or from a frozen teacher.

  Two of the same method on the same mesh are equal, whatever their weights:
  they have the same programs.
  """

  named = state_lib.STUDENTS
  words = {'gram': 'Gram anchoring'}

  def __init__(self, method: method_lib.Method, mesh: jax.sharding.Mesh,
               weights: InitialWeights | None = None, *,
               total_steps: int | None = None):
    """Keeps the arguments; nothing is computed.

    Args:
      method: networks, schedules and settings.
      mesh: active mesh.
      weights: weights that the run is given; None: random ones.
      total_steps: length of the run, after which no student may begin.
    """
    self.method, self.mesh = method, mesh
    self._weights, self._total = weights or InitialWeights(), total_steps
    self._monitors = {
        name: monitor.Monitor(method.settings.dino.num_prototypes)
        for name in method.each}
    self._methods: dict[variants_lib.Variant, method_lib.Method] = {}

  def __hash__(self):
    return id(self.method)

  def __eq__(self, other):
    return (isinstance(other, Pretraining) and self.method is other.method
            and self.mesh == other.mesh)

  def of(self, variant: variants_lib.Variant) -> method_lib.Method:
    """The method of a variant; the same object at every call."""
    if variant not in self._methods:
      self._methods[variant] = variants_lib.method_of(self.method, variant)
    return self._methods[variant]

  def variant(self, step: int) -> variants_lib.Variant:
    """The variant of a step."""
    return variants_lib.at(self.method, step)

  def variants(self, start: int, end: int) -> list[variants_lib.Variant]:
    """The variants of steps."""
    return variants_lib.between(self.method, start, end)

  def heaviest(self) -> variants_lib.Variant:
    """The variant with the largest crops and all losses."""
    return variants_lib.heaviest(self.method)

  def batch(self, variant: variants_lib.Variant) -> dict:
    """Shapes and shardings of a batch, see data.pipeline."""
    return batch_lib.abstract(self.of(variant).settings, self.mesh)

  def prepare(self, batch: dict, step: jax.Array, *,
              variant: variants_lib.Variant) -> dict:
    """Crops with photometric augmentation, normalised."""
    return method_lib.prepare(self.of(variant).settings, batch, step)

  def create(self, key: jax.Array) -> dict:
    """The state before step 0, with given weights, without Gram teacher."""
    fresh = dataclasses.replace(self.method, gram=None)
    return self._weights.begin(state_lib.create(
        fresh, self.mesh, key, with_teacher=False))

  def saved(self, info: Mapping[str, Any]) -> dict:
    """Shapes of what a checkpoint of the step in `info` holds.

    Raises:
      UserError: students would begin when the run has ended.
    """
    step = info['step']
    method = self.of(self.variant(step))
    known = info.get(self.named, list(method.each))
    new = [name for name in method.each if name not in known]
    if new and self._total is not None and step >= self._total:
      raise errors.UserError(
          f'the run has ended at step {step}, so students {", ".join(new)} '
          'would learn nothing: leave them out, or set train.total to more in '
          'another --workdir')
    return state_lib.abstract(
        self._without(method, new), self.mesh, with_teacher=False)

  def _without(self, method: method_lib.Method,
               names: list[str]) -> method_lib.Method:
    if not names:
      return method
    return dataclasses.replace(method, students={
        name: student for name, student in method.students.items()
        if name not in names})

  def enter(self, state: dict, variant: variants_lib.Variant) -> dict:
    """The state with frozen teacher, new students and Gram teacher."""
    method = self.of(variant)
    if method.has_frozen_teacher and trainable.FROZEN not in state:
      state = state | {trainable.FROZEN: {'teacher': self._teacher(state)}}
    new = [name for name in method.each if name not in state[self.named]]
    if new:
      state = state | {self.named: state[self.named] | self._begun(state, new)}
    if method.gram is not None and 'gram' not in state:
      state = self._anchored(state)
    return state

  def _teacher(self, state: dict) -> tree.Tree:
    shapes = sharding.abstract(self.method.teacher.shapes, self.mesh)
    if tree.is_abstract(state):
      return shapes
    params = self._weights.teacher()
    if params is None:  # a random one would teach noise, silently
      raise ValueError('a frozen teacher is distilled, and its weights were '
                       'not given: see InitialWeights.teacher')
    return params

  def _begun(self, state: dict, names: list[str]) -> dict:
    """Entries of students that begin at the step of the state."""
    method = dataclasses.replace(self.method, gram=None, students={
        name: self.method.students[name] for name in names})
    if tree.is_abstract(state):
      return state_lib.abstract(
          method, self.mesh, with_teacher=False)[self.named]
    if processes.is_first():
      print(f'step {int(state["step"])}: students {", ".join(names)} begin '
            'now', flush=True)
    fresh = self._weights.begin(state_lib.create(
        method, self.mesh, state['key'], with_teacher=False))
    return {name: entries | {'begun': jnp.copy(state['step'])}
            for name, entries in fresh[self.named].items()}

  def _anchored(self, state: dict) -> dict:
    """The state with a Gram teacher, of given weights or the EMA of now."""
    ema, = state_lib.emas(state).values()
    ema, zero = ema['backbone'], state['counters']['bad_images']
    if tree.is_abstract(state):
      backbone = ema
    else:
      backbone = self._weights.gram(ema)
      if backbone is None:
        backbone = jax.tree.map(jnp.copy, ema)
      zero = jnp.zeros_like(zero)
    return state | {'gram': backbone, 'counters': state['counters'] | {
        'gram_refreshes': zero}}

  def step(self, state: dict, batch: dict, *,
           variant: variants_lib.Variant) -> tuple[dict, dict]:
    """One update, see step.train_step."""
    return step_lib.train_step(state, batch, method=self.of(variant))

  def evaluated(self, state: dict) -> dict[str, tree.Tree]:
    """The EMA of every student."""
    return state_lib.emas(state)

  def watch(self, row: Mapping[str, float]) -> str | None:
    """Warnings of collapse."""
    warnings = []
    for name, watch in self._monitors.items():
      # What is of one of several stands in the row under its name.
      warning = watch.check(row | {
          key.removeprefix(f'{name}/'): value for key, value in row.items()
          if key.startswith(f'{name}/')})
      if warning:
        warnings.append(
            warning if name == sections.ALONE else f'{name}: {warning}')
    return '\n'.join(warnings) or None

  def leaf(self, index: int) -> str:
    """The name of a gradient."""
    return [path if name == sections.ALONE else f'{name} {path}'
            for name, student in self.method.each.items()
            for path in tree.names(student.student.shapes)][index]


def line(row: Mapping[str, float],
         evaluation: Mapping[str, float]) -> dict[str, str]:
  """Parts of the progress line, see report.Options."""
  parts = {}
  if 'dino/loss_over_log_k' in row:
    parts['loss/ln K'] = f'{row["dino/loss_over_log_k"]:.3f}'
  parts |= report.waited(row)
  scores = [f'{score:.1f}%' for name, score in evaluation.items()
            if name.endswith('knn/trained')]
  if scores:
    parts['k-NN'] = ' '.join(scores)
  return parts
