"""Items of a checkpoint: the entries of a state that can be read alone.

Layout 2. What a state holds under `named` are items PART.NAME; an entry that
is a dict is an item, and the small rest is 'meta', of each name 'meta.NAME'.
The frozen entry is left out: it is read again from where it came from.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

from dinojax.core import tree
from dinojax.engine import trainable

LAYOUT = 2
_META = 'meta'
_SMALL = ('counters',)

Items = dict[str, tree.Tree]


class Layout(Protocol):
  """How a state lies in a checkpoint."""

  def split(self, state: trainable.State) -> Items:
    """The items of a state; of shapes, shapes."""

  def join(self, items: Items) -> trainable.State:
    """The inverse, without what is frozen."""


@dataclasses.dataclass(frozen=True)
class Current:
  """The layout that is written.

  Attributes:
    named: see Trainable.
  """

  named: str

  def split(self, state: trainable.State) -> Items:
    """The items of a state."""
    items, meta = _apart(state, without=(self.named, trainable.FROZEN))
    for name, entry in state[self.named].items():
      large, small = _apart(entry)
      items |= {f'{part}.{name}': value for part, value in large.items()}
      items[f'{_META}.{name}'] = small
    return items | {_META: meta}

  def join(self, items: Items) -> trainable.State:
    """The inverse of `split`."""
    state, named = {}, {}
    for item, value in items.items():
      part, _, name = item.partition('.')
      to = named.setdefault(name, {}) if name else state
      to |= value if part == _META else {part: value}
    return state | {self.named: named}


def _apart(entries: Mapping[str, Any], without: tuple[str, ...] = ()
           ) -> tuple[Items, dict]:
  """Large entries, and small ones."""
  kept = {key: value for key, value in entries.items() if key not in without}
  large = {key: value for key, value in kept.items()
           if isinstance(value, Mapping) and key not in _SMALL}
  return large, {k: v for k, v in kept.items() if k not in large}
