"""The training state: a plain dict of arrays, born sharded in one jit."""

from collections.abc import Callable
import functools
import zlib

import jax
import jax.numpy as jnp

from dinojax.engine import trainable
from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import sections

STUDENTS = 'students'
# Centres lie where the logits of their prototypes do.
sharding.split_by_column(r'^centers/\w+$')


def init(method: method_lib.Method, key: jax.Array, *,
         with_teacher: bool = True) -> dict:
  """A fresh state; call under jit with `shardings` as out_shardings.

  Args:
    method: networks, optimizer and settings.
    key: typed PRNG key; every draw of the run follows from it and the step.
    with_teacher: includes a frozen teacher, if there is one; False where its
      weights are given, so that it takes no memory twice.

  Returns:
    step, key, counters; students, each as `init_student` has it; frozen with
    the teacher that is distilled; gram, a Gram teacher's own backbone, both of
    which start at random until weights are put in; centers when targets are
    softmax-centred.
  """
  counters = {'bad_images': zero()}
  state = {'step': zero(), 'key': key, 'counters': counters,
           STUDENTS: {name: init_student(student, name, key)
                      for name, student in method.each.items()}}
  if method.has_frozen_teacher and with_teacher:
    state[trainable.FROZEN] = {
        'teacher': method.teacher.init(jax.random.fold_in(key, 2))}
  if method.gram:
    state['gram'] = method.gram.init(jax.random.fold_in(key, 3))
    counters['gram_refreshes'] = zero()
  settings = method.settings
  if settings.teacher.centering == 'softmax':
    sizes = {term.NAME: term.center_size(settings)
             for term in settings.objectives}
    state['centers'] = {name: jnp.zeros(size, jnp.float32)
                        for name, size in sizes.items() if size}
  return state


def zero() -> jax.Array:
  """A count of nothing yet."""
  return jnp.zeros((), jnp.int32)


def init_student(method: method_lib.Method, name: str,
                 key: jax.Array) -> dict:
  """A fresh student, its EMA, moments, counters, and the step it begins at."""
  key = student_key(key, name)
  student = method.student.init(jax.random.fold_in(key, 0))
  return {'student': student, 'ema': jax.tree.map(jnp.copy, student),
          'opt': method.optimizer.init(student),
          'counters': {'skipped_steps': zero(), 'nonfinite_in_row': zero()},
          'begun': zero()}


def student_key(key: jax.Array, name: str) -> jax.Array:
  """PRNG key of a student, whatever the others are; alone, the run's."""
  if name == sections.ALONE:
    return key
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def create(method: method_lib.Method, mesh: jax.sharding.Mesh,
           key: int | jax.Array, *, with_teacher: bool = True) -> dict:
  """`init` of a key or a seed, jitted, with every leaf where it belongs."""
  key = jax.random.key(key) if isinstance(key, int) else key
  make = _init_of(method_lib.Same(method), with_teacher)
  out = sharding.shardings(jax.eval_shape(make, key), mesh)
  return jax.jit(make, out_shardings=out)(key)


def abstract(method: method_lib.Method, mesh: jax.sharding.Mesh, *,
             with_teacher: bool = True) -> dict:
  """Shapes, dtypes and shardings of the state."""
  key = jax.eval_shape(lambda: jax.random.key(0))  # the mesh may not be here
  shapes = jax.eval_shape(
      _init_of(method_lib.Same(method), with_teacher), key)
  return sharding.abstract(shapes, mesh)


@functools.lru_cache(maxsize=4)
def _init_of(same: method_lib.Same,
             with_teacher: bool) -> Callable[[jax.Array], dict]:
  """`init`; JAX keeps what it traced of a function, so here is one of each."""
  return functools.partial(init, same.method, with_teacher=with_teacher)


def teacher_of(state: dict) -> dict:
  """The parameters that make the targets: a frozen teacher's, or the EMA."""
  frozen = state.get(trainable.FROZEN, {})
  return frozen.get('teacher') or state[STUDENTS][sections.ALONE]['ema']


def emas(state: dict) -> dict[str, dict]:
  """The EMA of every student by name."""
  return {name: entries['ema'] for name, entries in state[STUDENTS].items()}
