"""Where the weights of a new run come from."""

import jax

from dinojax import weights as weights_lib
from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import adapt
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.train import recipe as recipe_lib
from dinojax.train import state as state_lib


class Start:
  """The weights of init.source, for networks of a recipe.

  Student and EMA start from the same.
  """

  def __init__(self, recipe: recipe_lib.Recipe, mesh: jax.sharding.Mesh):
    """Reads them, and says what is missing.

    Raises:
      UserError: no such weights, or those of another architecture.
    """
    self._mesh = mesh
    self._found, said = parts(recipe)
    if processes.is_first():
      print('\n  '.join([
          f'starts from {recipe.settings.init.source}', *said]), flush=True)

  def begin(self, state: dict) -> dict:
    """A fresh state with these weights."""
    for name in ('student', state_lib.ema_part(state)):
      state = state | {name: self.fill(state[name])}
    return state

  def fill(self, params: tree.Tree) -> tree.Tree:
    """Fresh parameters of a network with these weights."""
    new = dict(tree.items(self._found))

    def leaf(name, old, place):
      if name not in new:
        return old
      return jax.make_array_from_callback(
          old.shape, place, lambda index: new[name][index].astype(old.dtype))

    return tree.map_with_name(
        leaf, params, sharding.shardings(params, self._mesh))


def parts(recipe: recipe_lib.Recipe) -> tuple[dict, list[str]]:
  """What the source has for the student: backbone and heads; and on that.

  Raises:
    UserError: see `Start`.
  """
  settings, shapes = recipe.settings, recipe.student.shapes
  source = settings.init.source
  try:
    read = weights_lib.read(source)
  except errors.UserError as error:
    raise errors.UserError(f'init.source={source}: {error}') from error
  params, said = adapt.backbone(
      read, settings.model, shapes['backbone'], source)
  found = {'backbone': params}
  for name in sorted(set(shapes) - {'backbone'}):
    head = read.heads.get(name) if settings.init.heads else None
    if head is not None and _alike(head.params, shapes[name]):
      found[name] = head.params
    else:
      why = ('init.heads=False' if not settings.init.heads
             else 'the source has none' if head is None
             else 'that of the source has other sizes')
      said.append(f'{name}: random, {why}')
  return found, said


def _alike(params: tree.Tree, shapes: tree.Tree) -> bool:
  sizes = lambda x: {name: leaf.shape for name, leaf in tree.items(x)}
  return sizes(params) == sizes(shapes)
