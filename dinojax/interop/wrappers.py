"""The backbone among the tensors of a file, whatever wraps or surrounds it.

Training code saves a backbone under the names of its wrappers (`module.`,
`_orig_mod.`), beside heads and a classifier, or several of it: a student, its
EMA, a teacher. Names are dotted paths, nested dicts joined.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re

import numpy as np

from dinojax.core import errors

State = dict[str, np.ndarray]
_WRAPPERS = frozenset((
    'module', '_orig_mod', '_forward_module', '_fsdp_wrapped_module',
    '_checkpoint_wrapped_module', '_ddp_module', '_fpw_module'))
# One tensor that every backbone of a family has, and has once.
_ANCHOR = re.compile(
    r'((?:.*?\.)??)(?:embeddings\.patch_embeddings\.(?:projection\.)?weight'
    r'|patch_embed\.proj\.weight|downsample_layers\.0\.0\.weight'
    r'|stem\.0\.weight|(?:model\.)?stages\.0\.downsample_layers\.0\.weight)')
_MOMENTS = re.compile(
    r'(?:^|\.)(?:optim\w*|exp_avg\w*|momentum_buffer|grads?)\.')
# What follows a backbone and is no part of it, where nothing sets it apart.
_CLASSIFIER = re.compile(
    r'(?:classifier|linear_head|fc)\.(?:weight|bias)|head\.(?:fc\.)?'
    r'(?:weight|bias)|n_averaged')
_HEADS = ('dino_head', 'ibot_head')
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Contents:
  """A backbone, its heads, and what was decided.

  Attributes:
    state: tensors of the backbone by their own names.
    heads: tensors of 'dino_head' and 'ibot_head', where they stand beside it.
    notes: sentences on what was taken and what was left out.
  """

  state: State
  heads: dict[str, State]
  notes: tuple[str, ...]


def unwrapped(state: Mapping[str, np.ndarray], source: str) -> State:
  """The same tensors under names without those of wrappers.

  Raises:
    UserError: two tensors that differ would have the same name.
  """
  out: State = {}
  for key, value in state.items():
    words = key.split('.')
    name = '.'.join(w for w in words if w not in _WRAPPERS) or key
    if name in out and not _same(out[name], value):
      raise errors.UserError(
          f'{source} holds {name} twice, under a wrapper and without, with '
          'different values: save the one that is meant')
    out[name] = value
  return out


def find(state: Mapping[str, np.ndarray], part: str, source: str) -> Contents:
  """The backbone that a file holds, or the one of several that is meant.

  Args:
    state: all tensors of the file.
    part: 'ema' or 'student' where there are both, or the name of one.
    source: the file, for messages.

  Raises:
    UserError: none, or several of which none is the one that is meant.
  """
  state = unwrapped(state, source)
  prefixes = list(dict.fromkeys(
      match[1] for key in state if (match := _ANCHOR.fullmatch(key))
      and not _MOMENTS.search(match[1])))
  if not prefixes:
    raise errors.UserError(
        f'{source} holds no DINOv2 or DINOv3 backbone: its tensors begin with '
        f'{", ".join(list(state)[:3]) or "nothing"}')
  taken, notes = prefixes[0], []
  if len(prefixes) > 1:
    taken, note = _choose(state, prefixes, part, source)
    notes.append(note)
  elif taken not in ('', 'backbone.'):
    other = {'ema': 'student', 'student': 'ema'}[part] if (
        part in ('ema', 'student')) else None
    notes.append(f'{source}: the backbone is {_label(taken)}' + (
        f', as it holds no {part}' if _role(taken) == other else ''))
  return _split(state, taken, prefixes, notes, source)


def _split(state: State, taken: str, prefixes: Sequence[str],
           notes: list[str], source: str) -> Contents:
  """Takes the backbone under a prefix and its heads, and notes the rest."""
  inner = [p for p in prefixes if p != taken and p.startswith(taken)]
  outer = taken.removesuffix('backbone.')
  body: State = {}
  heads: dict[str, State] = {name: {} for name in _HEADS}
  left = []
  for key, value in state.items():
    head, _, rest = key.removeprefix(outer).partition('.')
    name = key.removeprefix(taken)
    if key.startswith(outer) and head in _HEADS:
      heads[head][rest] = value
    elif not key.startswith(taken) or any(map(key.startswith, inner)) or (
        _CLASSIFIER.fullmatch(name)):
      left.append(key)
    else:
      body[name] = value
  if left:
    notes.append(f'{source}: left out {_shown(left)}')
  return Contents(body, {name: head for name, head in heads.items() if head},
               tuple(notes))


def _choose(state: State, prefixes: Sequence[str], part: str,
            source: str) -> tuple[str, str]:
  """The one of several backbones that `part` means, and a sentence on it."""
  labels = {_label(prefix): prefix for prefix in prefixes}
  named = [x for x in labels if x == part or x.endswith(f'.{part}')]
  if len(named) == 1 and part not in ('ema', 'student'):
    return labels[named[0]], f'{source}: the backbone is {named[0]}'
  among = f'of the backbones {", ".join(labels)}'
  wanted = [p for p in prefixes if _role(p) == part]
  if part == 'student' and not wanted and any(
      _role(p) == 'ema' for p in prefixes):
    wanted = [p for p in prefixes if _role(p) == 'one']
  if len(wanted) > 1:  # a frozen teacher, and the EMA of what it taught
    wanted = [p for p in wanted if 'ema' in _words(p)] or wanted
  if wanted and all(_alike(state, wanted[0], other) for other in wanted[1:]):
    return wanted[0], (
        f'{source}: {among}, {_label(wanted[0])} is taken'
        + (' (the EMA)' if part == 'ema' else ''))
  raise errors.UserError(
      f'{source} holds several backbones: {", ".join(labels)}, and which is '
      f'meant is not known (part={part!r}): give the name of one as part, or '
      'save it in a file of its own')


def _label(prefix: str) -> str:
  """A name for what is under a prefix: 'model.teacher'."""
  name = prefix.removesuffix('.')
  short = name.removesuffix('backbone').removesuffix('.')
  return short or name or 'the unnamed one'


def _words(prefix: str) -> list[str]:
  return re.split(r'[._]', prefix.lower())


def _role(prefix: str) -> str:
  """'ema', 'student', 'gram' (a frozen copy) or 'one' of no known role."""
  words = _words(prefix)
  for role, known in (('gram', {'gram'}),
                      ('ema', {'ema', 'teacher', 'momentum', 'target'}),
                      ('student', {'student', 'online'})):
    if known.intersection(words):
      return role
  return 'one'


def _alike(state: State, first: str, other: str) -> bool:
  """Tells whether two backbones are the same, bit for bit."""
  under = lambda prefix: {
      key.removeprefix(prefix): value for key, value in state.items()
      if key.startswith(prefix)}
  a, b = under(first), under(other)
  return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def _shown(keys: Sequence[str]) -> str:
  """'classifier (2 tensors), student (180 tensors)'."""
  groups: dict[str, int] = {}
  for key in keys:
    group = key.split('.')[0]
    groups[group] = groups.get(group, 0) + 1
  texts = [f'{name} ({n} tensor{"s" if n > 1 else ""})'
           for name, n in groups.items()]
  more = len(texts) - _SHOWN
  return ', '.join(texts[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
