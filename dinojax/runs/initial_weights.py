"""Where the weights of a run come from: its start, and teachers that it has."""

import jax
import jax.numpy as jnp

from dinojax.core import errors
from dinojax.core import text
from dinojax.core import tree
from dinojax.interop import adapt
from dinojax.interop import reading
from dinojax.parallel import processes
from dinojax.parallel import sharding
from dinojax.runs import models as models_lib
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import sections
from dinojax.train import state as state_lib


class InitialWeights(pretraining.InitialWeights):
  """The weights that a config names, for networks of a method."""

  def __init__(self, method: method_lib.Method, mesh: jax.sharding.Mesh,
               teacher: models_lib.FrozenTeacher | None = None):
    """Weights are read when they are needed.

    Args:
      method: the method to train.
      mesh: devices that the weights are placed on.
      teacher: frozen teacher that is distilled; None: there is none.
    """
    self._method, self._mesh, self._teacher = method, mesh, teacher
    self._weights: dict[str, tuple[tree.Tree, tree.Tree] | None] = {}
    self._gram: tree.Tree | None = None
    gram = method.settings.gram
    self._has_gram = bool(gram.has_backbone and gram.source)

  def release(self):
    """Forgets the host's copies: compiled programs outlive a run, and hold it.
    """
    self._weights, self._gram, self._teacher = {}, None, None

  def check(self, latest: int | None):
    """Reads all that the run still needs, and says what is missing.

    Args:
      latest: step of the last checkpoint; None: there is none.

    Raises:
      UserError: no such weights, or those of another architecture.
    """
    if latest is None:
      for name in self._method.each:
        self._parts(name)
    if self._has_gram and (
        latest is None or latest < self._method.gram_start):
      self._gram = self._read_gram()

  def begin(self, state: dict) -> dict:
    """A fresh state with these weights in students and their EMA."""
    filled = {}
    for name, entries in state[state_lib.STUDENTS].items():
      weights = self._parts(name)
      filled[name] = entries if weights is None else entries | {
          'student': self._fill(entries['student'], weights[0]),
          'ema': self._fill(entries['ema'], weights[1])}
    return state | {state_lib.STUDENTS: filled}

  def teacher(self) -> tree.Tree | None:
    """The parameters of the frozen teacher, once."""
    if self._teacher is None:
      return None
    shapes = sharding.abstract(self._method.teacher.shapes, self._mesh)
    params = {part: self._teacher.params[part] for part in shapes}
    source = self._method.settings.distillation.source
    _check_whole(params, shapes, f'distillation.source={source}')
    self._teacher = None  # of the host's memory
    return self._fill(shapes, params)

  def fill(self, name: str, params: tree.Tree) -> tree.Tree | None:
    """Fresh parameters with what the EMA of a student starts from, if any."""
    weights = self._parts(name)
    return None if weights is None else self._fill(params, weights[1])

  def gram(self, ema: tree.Tree) -> tree.Tree | None:
    """The Gram teacher's backbone."""
    if not self._has_gram:
      return None
    params = self._gram or self._read_gram()
    self._gram = None
    return self._fill(ema, params)

  def _read_gram(self) -> tree.Tree:
    s = self._method.settings
    read = _read('gram.source', s.gram.source)
    params, notes = adapt.backbone(
        read, s.model, self._method.gram.shapes, f'gram.source={s.gram.source}')
    models_lib.check_colours(read, s, f'gram.source={s.gram.source}')
    _say(f'the Gram teacher is {s.gram.source}', notes)
    _check_whole(params, self._method.gram.shapes,
                 f'gram.source={s.gram.source}')
    return params

  def _parts(self, name: str) -> tuple[tree.Tree, tree.Tree] | None:
    """Weights that a student and its EMA start from; None: random ones."""
    if name not in self._weights:
      self._weights[name] = self._read_parts(name)
    return self._weights[name]

  def _read_parts(self, name: str) -> tuple[tree.Tree, tree.Tree] | None:
    method = self._method.each[name]
    init = method.settings.init
    if init.source is None:
      return None
    student, notes = of_student(
        method, 'student' if init.part in ('student', 'both') else 'ema')
    ema = student
    if init.part == 'both':
      ema, _ = of_student(method, 'ema')
    who = '' if name == sections.ALONE else f'{name} '
    _say(f'{who}starts from {init.source}', notes)
    return student, ema

  def _fill(self, params: tree.Tree, values: tree.Tree) -> tree.Tree:
    """Parameters, or their shapes, with these values where there are any."""
    new = dict(tree.items(values))

    def leaf(name, old, place):
      if name not in new:
        return jnp.copy(old) if isinstance(old, jax.Array) else jnp.zeros(
            old.shape, old.dtype, device=place)
      return jax.make_array_from_callback(
          old.shape, place, lambda index: new[name][index].astype(old.dtype))

    return tree.map_with_name(
        leaf, params, sharding.shardings(params, self._mesh))


def _check_whole(params: tree.Tree, shapes: tree.Tree, source: str):
  """Checks that a teacher that never trains has all weights that it uses.

  It sees whole images, so it needs no mask token and no norm of local crops.
  """
  unread = 'mask_token', 'local_cls_norm'
  missing = [name for name in tree.names(shapes)
             if name not in set(tree.names(params))
             and not any(part in name for part in unread)]
  if missing:
    raise errors.UserError(
        f'{source} lacks {", ".join(missing)}: a teacher must be whole, use '
        'weights of this architecture')


def _say(what: str, details: list[str]):
  if processes.is_first():
    print('\n  '.join(map(text.printable, [what, *details])), flush=True)


def _read(key: str, source: str, part: str = 'ema') -> reading.Weights:
  try:
    return models_lib.read(source, part=part)
  except errors.UserError as error:
    raise errors.UserError(f'{key}={source}: {error}') from error


def of_student(method: method_lib.Method,
          part: str = 'ema') -> tuple[dict, list[str]]:
  """Reads a student's backbone and heads from init.source, with notes on them.

  Args:
    method: method of one student.
    part: weights of a run that are read: 'ema' or 'student'.

  Raises:
    UserError: no such weights, or those of another architecture.
  """
  settings, shapes = method.settings, method.student.shapes
  source = settings.init.source
  read = _read('init.source', source, part)
  models_lib.check_colours(read, settings, f'init.source={source}')
  params, notes = adapt.backbone(
      read, settings.model, shapes['backbone'], f'init.source={source}')
  student = {'backbone': params}
  for name in sorted(set(shapes) - {'backbone'}):
    head = read.heads.get(name) if settings.init.heads else None
    if head is not None and _alike(head.params, shapes[name]):
      student[name] = head.params
    else:
      why = ('init.heads=False' if not settings.init.heads
             else 'the source has none' if head is None
             else 'that of the source has other sizes')
      notes.append(f'{name}: random, {why}')
  return student, notes


def _alike(params: tree.Tree, shapes: tree.Tree) -> bool:
  sizes = lambda x: {name: leaf.shape for name, leaf in tree.items(x)}
  return sizes(params) == sizes(shapes)
