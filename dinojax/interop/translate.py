"""State dicts of a file to our parameter trees and back, by a table."""

from collections.abc import Collection, Mapping

import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import names

State = dict[str, np.ndarray]
_SHOWN = 8  # names of each kind in an error message


def to_ours(state: Mapping[str, np.ndarray], table: names.Table,
            shapes: tree.Tree, *, ignored: Collection[str] = (),
            source: str = 'the file') -> tree.Tree:
  """Parameters from a state dict.

  Args:
    state: tensors by name.
    table: rules that tie these tensors to our leaves.
    shapes: abstract parameters, which decide all sizes.
    ignored: names that may be present and carry nothing for us.
    source: name of the file in the message.

  Returns:
    A tree like `shapes`, float32 numpy.

  Raises:
    UserError: every missing, unexpected, mis-shaped, whole-numbered and
      non-finite tensor, in one message.
  """
  wanted = dict(tree.items(shapes))
  problems: dict[str, list[str]] = {}
  report = lambda kind, text: problems.setdefault(kind, []).append(text)
  used, leaves = set(ignored), {}
  for rule in table:
    leaf = wanted[rule.path]
    expected = _expected(rule, leaf.shape)
    parts = []
    for key, shape in zip(rule.keys, expected, strict=True):
      used.add(key)
      if key not in state:
        report('missing', key)
      elif state[key].shape != shape:
        report('of another shape',
               f'{key} {state[key].shape} instead of {shape}')
      else:
        if state[key].dtype.kind != 'f':  # quantised: the scales are lost
          report('not of floats', f'{key} {state[key].dtype}')
        elif not np.isfinite(state[key]).all():
          report('not finite', key)
        parts.append(rule.layout.to_ours(state[key]))
    if len(parts) == len(rule.keys):
      value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
      leaves.setdefault(rule.path, {})[rule.layer] = value
  for key in state:
    if key not in used:
      report('unexpected', f'{key} {state[key].shape}')
  if problems:
    raise errors.UserError(_message(source, problems))

  def build(name, leaf):
    layers = leaves[name]
    value = (layers[None] if None in layers else
             np.stack([layers[i] for i in range(leaf.shape[0])]))
    return np.ascontiguousarray(value, np.float32)

  return tree.map_with_name(build, shapes)


def to_theirs(params: tree.Tree, table: names.Table) -> State:
  """A state dict from parameters: the inverse of `to_ours`."""
  ours = dict(tree.items(params))
  state = {}
  for rule in table:
    value = np.asarray(ours[rule.path])
    if rule.layer is not None:
      value = value[rule.layer]
    for key, part in zip(rule.keys, np.split(value, len(rule.keys), axis=-1),
                         strict=True):
      state[key] = np.ascontiguousarray(rule.layout.to_theirs(part))
  return state


def holds(state: Mapping[str, np.ndarray], params: tree.Tree,
          table: names.Table) -> bool:
  """Tells whether a state dict has these parameters, tensor by tensor."""
  ours = {name: np.asarray(leaf) for name, leaf in tree.items(params)}
  for rule in table:
    value = ours[rule.path]
    if rule.layer is not None:
      value = value[rule.layer]
    for key, part in zip(rule.keys, np.split(value, len(rule.keys), axis=-1),
                         strict=True):
      if key not in state or not np.array_equal(
          state[key], rule.layout.to_theirs(part)):
        return False
  return True


def key_shapes(table: names.Table,
               shapes: tree.Tree) -> dict[str, tuple[int, ...]]:
  """Shapes of all tensors of a file, for parameters of these shapes."""
  ours = dict(tree.items(shapes))
  return {key: shape for rule in table for key, shape in zip(
      rule.keys, _expected(rule, ours[rule.path].shape), strict=True)}


def _expected(rule: names.Rule, shape: tuple[int, ...]) -> list[tuple]:
  """Shapes that a rule's tensors must have in the file."""
  if rule.layer is not None:
    shape = shape[1:]
  shape = (*shape[:-1], shape[-1] // len(rule.keys))
  # A view without memory: layouts only permute and add axes.
  like = np.broadcast_to(np.zeros((), np.float32), shape)
  return [rule.layout.to_theirs(like).shape] * len(rule.keys)


def _message(source: str, problems: dict[str, list[str]]) -> str:
  parts = []
  for kind, texts in problems.items():
    shown = ', '.join(texts[:_SHOWN])
    more = len(texts) - _SHOWN
    parts.append(f'{len(texts)} {kind}: {shown}'
                 + (f' and {more} more' if more > 0 else ''))
  return f'{source} does not hold these weights: ' + '; '.join(parts)
