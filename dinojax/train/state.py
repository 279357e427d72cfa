"""The training state: a plain dict of arrays, born sharded in one jit."""

import jax
import jax.numpy as jnp

from dinojax.core import tree
from dinojax.parallel import sharding
from dinojax.train import recipe as recipe_lib

# What a checkpoint part of its own holds; the rest is 'meta'. Evaluations read
# one part alone, see `ema_part`.
PARTS = ('student', 'teacher', 'ema', 'gram', 'opt')


def init(recipe: recipe_lib.Recipe, key: jax.Array) -> dict:
  """A fresh state; call under jit with `shardings` as out_shardings.

  Args:
    recipe: what is trained.
    key: typed PRNG key; every draw of the run follows from it and the step.

  Returns:
    step, key, student, teacher (the EMA, equal to the student), opt,
    counters; centers when targets are softmax-centred; ema when the teacher
    is a frozen one, and gram, a Gram teacher's own backbone, both of which
    start at random until weights are put in.
  """
  student = recipe.student.init(jax.random.fold_in(key, 0))
  zero = lambda: jnp.zeros((), jnp.int32)
  state = {
      'step': zero(), 'key': key, 'student': student,
      'teacher': jax.tree.map(jnp.copy, student),
      'opt': recipe.optimizer.init(student),
      'counters': {'bad_images': zero(), 'skipped_steps': zero(),
                   'nonfinite_in_row': zero()}}
  if recipe.has_frozen_teacher:
    state['ema'] = state['teacher']
    state['teacher'] = recipe.teacher.init(jax.random.fold_in(key, 2))
  if recipe.gram:
    state['gram'] = recipe.gram.init(jax.random.fold_in(key, 3))
    state['counters']['gram_refreshes'] = zero()
  settings = recipe.settings
  if settings.teacher.centering == 'softmax':
    heads = [(name, getattr(settings, name)) for name in ('dino', 'ibot')]
    shared = not settings.ibot.separate_head
    state['centers'] = {
        name: jnp.zeros(
            (settings.dino if shared else head).num_prototypes, jnp.float32)
        for name, head in heads if head.loss_weight}
  return state


def create(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh,
           seed: int) -> dict:
  """`init`, jitted, with every leaf where it belongs."""
  key = jax.random.key(seed)
  make = lambda key: init(recipe, key)
  out = sharding.shardings(jax.eval_shape(make, key), mesh)
  return jax.jit(make, out_shardings=out)(key)


def abstract(recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh) -> dict:
  """Shapes, dtypes and shardings of the state: the target of a restore."""
  shapes = jax.eval_shape(lambda: init(recipe, jax.random.key(0)))
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes, sharding.shardings(shapes, mesh))


def ema_part(state: dict) -> str:
  """The part that is evaluated and exported: the EMA of the student."""
  return 'ema' if 'ema' in state else 'teacher'


def split(state: dict) -> dict:
  """The state as named checkpoint parts; small entries are 'meta'."""
  parts = {name: state[name] for name in PARTS if name in state}
  parts['meta'] = {k: v for k, v in state.items() if k not in parts}
  return parts


def join(parts: dict) -> dict:
  """The inverse of `split`."""
  return {k: v for k, v in parts.items() if k != 'meta'} | parts['meta']


def num_parameters(state: dict) -> dict[str, int]:
  """Elements of each part of the student."""
  return {name: tree.num_elements(part)
          for name, part in state['student'].items()}
