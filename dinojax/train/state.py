"""The training state: a plain dict of arrays, born sharded in one jit."""

from collections.abc import Callable
import functools
import zlib

import jax
import jax.numpy as jnp

from dinojax.parallel import sharding
from dinojax.train import recipe as recipe_lib

# What a checkpoint part of its own holds; the rest is 'meta'. Evaluations read
# one part alone, see `ema_part`.
PARTS = ('student', 'teacher', 'ema', 'gram', 'opt')
STUDENTS = 'students'


def init(recipe: recipe_lib.Recipe, key: jax.Array, *,
         with_teacher: bool = True) -> dict:
  """A fresh state; call under jit with `shardings` as out_shardings.

  Args:
    recipe: what is trained.
    key: typed PRNG key; every draw of the run follows from it and the step.
    with_teacher: whether a frozen teacher is part of it; one that is given
      takes no memory twice.

  Returns:
    step, key, student, teacher (the EMA, equal to the student), opt,
    counters; centers when targets are softmax-centred; ema when the teacher
    is a frozen one, and gram, a Gram teacher's own backbone, both of which
    start at random until weights are put in. Of several students: step, key,
    teacher, counters, and students, each as `init_student` has it.
  """
  state = {'step': zero(), 'key': key, 'counters': {'bad_images': zero()}}
  if recipe.has_frozen_teacher and with_teacher:
    state['teacher'] = recipe.teacher.init(jax.random.fold_in(key, 2))
  if recipe.students:
    return state | {STUDENTS: {
        name: init_student(one, name, key) | {'begun': zero()}
        for name, one in recipe.students.items()}}
  own = init_student(recipe, '', key)
  counters = state['counters'] | own['counters']
  state |= own | {'counters': counters}
  if not recipe.has_frozen_teacher:
    state['teacher'] = state.pop('ema')
  if recipe.gram:
    state['gram'] = recipe.gram.init(jax.random.fold_in(key, 3))
    counters['gram_refreshes'] = zero()
  settings = recipe.settings
  if settings.teacher.centering == 'softmax':
    heads = [(name, getattr(settings, name)) for name in ('dino', 'ibot')]
    shared = not settings.ibot.separate_head
    state['centers'] = {
        name: jnp.zeros(
            (settings.dino if shared else head).num_prototypes, jnp.float32)
        for name, head in heads if head.loss_weight}
  return state


def zero() -> jax.Array:
  """A count of nothing yet."""
  return jnp.zeros((), jnp.int32)


def init_student(recipe: recipe_lib.Recipe, name: str,
                 key: jax.Array) -> dict:
  """A fresh student, its EMA, moments and counters."""
  if name:
    key = student_key(key, name)
  student = recipe.student.init(jax.random.fold_in(key, 0))
  return {'student': student, 'ema': jax.tree.map(jnp.copy, student),
          'opt': recipe.optimizer.init(student),
          'counters': {'skipped_steps': zero(), 'nonfinite_in_row': zero()}}


def student_key(key: jax.Array, name: str) -> jax.Array:
  """What one of several students draws from, whatever the others are."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def create(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh, seed: int, *,
           with_teacher: bool = True) -> dict:
  """`init`, jitted, with every leaf where it belongs."""
  key = jax.random.key(seed)
  make = _init_of(recipe_lib.Same(recipe), with_teacher)
  out = sharding.shardings(jax.eval_shape(make, key), mesh)
  return jax.jit(make, out_shardings=out)(key)


def abstract(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh) -> dict:
  """Shapes, dtypes and shardings of the state: the target of a restore."""
  key = jax.eval_shape(lambda: jax.random.key(0))  # the mesh may not be here
  shapes = jax.eval_shape(_init_of(recipe_lib.Same(recipe), True), key)
  return sharding.abstract(shapes, mesh)


@functools.lru_cache(maxsize=4)
def _init_of(same: recipe_lib.Same,
             with_teacher: bool) -> Callable[[jax.Array], dict]:
  """`init`; JAX keeps what it traced of a function, so here is one of each."""
  return functools.partial(init, same.recipe, with_teacher=with_teacher)


def each(state: dict) -> dict[str, dict]:
  """The entries of every student by name; one alone has no name."""
  return state.get(STUDENTS) or {'': state}


def ema_part(state: dict) -> str:
  """The part that is evaluated and exported: the EMA of the student."""
  return 'ema' if 'ema' in state else 'teacher'


def emas(state: dict) -> dict[str, dict]:
  """The EMA of every student by name; one alone has no name."""
  return {name: own[ema_part(own)] for name, own in each(state).items()}


def split(state: dict) -> dict:
  """The state as named checkpoint parts; small entries are 'meta'.

  A frozen teacher is left out: it is read again from where it came from.
  """
  parts, meta = _parts(state)
  if STUDENTS in state:
    del meta[STUDENTS]
    for name, own in state[STUDENTS].items():
      large, small = _parts(own)
      parts |= {f'{part}.{name}': value for part, value in large.items()}
      parts[f'meta.{name}'] = small
  return parts | {'meta': meta}


def _parts(entries: dict) -> tuple[dict, dict]:
  frozen = {'teacher'} if 'ema' in entries or STUDENTS in entries else set()
  large = {name: entries[name] for name in PARTS
           if name in entries and name not in frozen}
  return large, {k: v for k, v in entries.items()
                 if k not in large and k not in frozen}


def join(parts: dict) -> dict:
  """The inverse of `split`, without a frozen teacher."""
  state, students = {}, {}
  for name, value in parts.items():
    part, _, student = name.partition('.')
    to = students.setdefault(student, {}) if student else state
    to |= value if part == 'meta' else {part: value}
  return state | ({STUDENTS: students} if students else {})
