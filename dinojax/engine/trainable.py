"""Interface of a training method to the loop, checkpoints and planning.

A state is a dict: `step` and `key`; `counters`; one entry, `named`, whose
entries are what is trained, by name; `frozen`, which is never saved; and what
else a method adds. Metrics are float32 scalars by name; `loss`, `bad_images`,
`nonfinite_in_row` and `first_bad_leaf` are always among them: the loop reads
these every step, one step late, and nothing else by name.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import jax

from dinojax.core import tree

State = dict[str, Any]
Metrics = dict[str, jax.Array]
FROZEN = 'frozen'  # the entry of a state that no checkpoint holds


class Trainable(Protocol):
  """A training method with its networks, on a mesh.

  Attributes:
    named: entry of the state whose entries are trained, such as 'students'.
    words: names in the log of entries that a state gains on the way.
  """

  named: str
  words: Mapping[str, str]

  def variant(self, step: int) -> Hashable:
    """The program of a step; its text says what tells it from others."""

  def variants(self, start: int, end: int) -> Sequence[Hashable]:
    """All programs that steps `start` to before `end` may need."""

  def heaviest(self) -> Hashable:
    """The program that needs the most memory: what planning looks at."""

  def batch(self, variant: Hashable) -> tree.Tree:
    """Shapes and shardings of what the host sends."""

  def prepare(self, batch: tree.Tree, step: jax.Array, *,
              variant: Hashable) -> tree.Tree:
    """Makes the input of the step from what the host sends; compiled apart."""

  def create(self, key: jax.Array) -> State:
    """The state before step 0, given weights included."""

  def saved(self, info: Mapping[str, Any]) -> State:
    """Shapes and shardings of what a checkpoint with this info holds.

    Raises:
      UserError: nothing of it can be trained on.
    """

  def enter(self, state: State, variant: Hashable) -> State:
    """The state with what a variant needs, else the state itself.

    The only place where a state grows. Of shapes it returns shapes, and
    touches no weights.
    """

  def step(self, state: State, batch: tree.Tree, *,
           variant: Hashable) -> tuple[State, Metrics]:
    """The next state; pure, and the state is donated."""

  def evaluated(self, state: State) -> dict[str, tree.Tree]:
    """Parameters to evaluate, by name; the next step donates these buffers."""

  def watch(self, row: Mapping[str, float]) -> str | None:
    """A warning about a logged row of metrics; earlier rows are remembered."""

  def leaf(self, index: int) -> str:
    """The name of a gradient, by the number in `first_bad_leaf`."""


def shapes_of(state: tree.Tree) -> tree.Tree:
  """Shapes and shardings of arrays, to compile for while they change."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)
