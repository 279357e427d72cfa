"""Golden cases: numbers made by running the reference implementations.

A case has a kind; a function in `tests/kinds` feeds cases of that kind to the
project. Functions know kinds, options and calls, never the names of cases,
and an option that nobody reads fails the case.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

KEPT = pathlib.Path(__file__).parent / 'goldens'
_ALL = (KEPT, KEPT.with_name('goldens_evals'),
        KEPT.with_name('goldens_heads'), KEPT.with_name('goldens_curation'))


def folders() -> tuple[pathlib.Path, ...]:
  """The cases under test: in `DINOJAX_GOLDENS`, else those kept here."""
  given = os.environ.get('DINOJAX_GOLDENS')
  return (pathlib.Path(given),) if given else _ALL


class Options(Mapping):
  """A dict that remembers what was read of it, nested dicts included."""

  def __init__(self, values: dict, name: str):
    self._values, self._name, self._read = values, name, set()
    self._inner = {
        key: Options(value, f'{name}.{key}')
        for key, value in values.items() if isinstance(value, dict)}

  def __getitem__(self, key):
    self._read.add(key)
    return self._inner.get(key, self._values[key])

  def __iter__(self) -> Iterator:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def skip(self, *keys: str):
    """Marks what a human reads, or what has no effect on the numbers."""
    self._read.update(keys)

  def only(self, key: str, *values: Any):
    """Asserts that an option, if present, has a value that is understood."""
    if key in self._values:
      assert self[key] in values, f'{self._name}.{key}={self[key]!r}'

  def finish(self):
    """Fails if an option was not read."""
    unread = sorted(set(self._values) - self._read)
    assert not unread, f'{self._name}: nothing reads {", ".join(unread)}'
    for key in self._read & self._inner.keys():
      self._inner[key].finish()

  def skip_all(self):
    """Marks everything inside as read."""
    self._read.update(self._values)
    for inner in self._inner.values():
      inner.skip_all()


@dataclasses.dataclass
class Within:
  """A value with a tolerance of its own.

  Attributes:
    value: what we computed.
    rtol: relative to each entry of the reference.
    atol: absolute; may be an array.
    of_largest: relative to the reference's largest magnitude, for gradients.
  """

  value: Any
  rtol: float = 0.0
  atol: float | np.ndarray = 0.0
  of_largest: float = 0.0


@dataclasses.dataclass(frozen=True)
class Case:
  """One case: arrays by name, weights by tag ('' when there is one model)."""

  meta: dict
  inputs: dict[str, np.ndarray]
  weights: dict[str, dict[str, np.ndarray]]
  outputs: dict[str, np.ndarray]
  folder: pathlib.Path = KEPT

  @functools.cached_property
  def config(self) -> Options:
    return Options(self.meta['config'], 'config')

  @functools.cached_property
  def calls(self) -> list[Options]:
    calls = self.meta.get('calls') or []
    if isinstance(calls, str):  # words for people
      return []
    calls = calls if isinstance(calls, list) else [calls]
    return [Options(call, f'calls[{i}]') for i, call in enumerate(calls)]

  def finish(self):
    """Fails if an option of the config or of a call was not read."""
    for options in (self.config, *self.calls):
      options.finish()

  def check(self, name: str, got, **tolerance):
    """Asserts that `got` equals output `name` within a tolerance.

    Args:
      name: of the output.
      got: a value, or `Within`, which brings its tolerance.
      **tolerance: rtol and atol; the case's own otherwise.
    """
    want, stated = self.outputs[name], self.meta['tolerance']
    rtol = tolerance.get('rtol', stated.get('rtol', 1e-4))
    atol = tolerance.get('atol', stated.get('atol', 1e-5))
    if isinstance(got, Within):
      rtol, atol = got.rtol, got.atol
      atol = atol + got.of_largest * np.abs(want).max(initial=0)
      got = got.value
    got, text = np.asarray(got), f'{self.meta["name"]}: {name}'
    assert got.shape == want.shape, f'{text} {got.shape} not {want.shape}'
    if want.dtype.kind != 'f':
      np.testing.assert_array_equal(got, want, err_msg=text)
      return
    got, want = got.astype(np.float64), want.astype(np.float64)
    excess = np.abs(got - want) - (atol + rtol * np.abs(want))
    wrong = ~(excess <= 0)  # NaN is wrong
    if wrong.any():
      worst = np.unravel_index(
          np.argmax(np.nan_to_num(excess, nan=np.inf)), want.shape)
      raise AssertionError(
          f'{text}: {wrong.sum()} of {want.size} entries differ; at {worst} '
          f'{got[worst]} is not {want[worst]}')

  def compare(self, got: Mapping[str, Any]):
    """Asserts every output of the case; `got` may hold more."""
    missing = sorted(self.outputs.keys() - got.keys())
    assert not missing, f'{self.meta["name"]}: nothing gives {missing}'
    for name in self.outputs:
      self.check(name, got[name])


Outputs = dict[str, Any]
KINDS: dict[str, Callable[[Case], Outputs]] = {}


def kind(*names: str):
  """Registers what computes the outputs of cases of these kinds."""
  def register(function):
    for name in names:
      assert name not in KINDS
      KINDS[name] = function
    return function
  return register


@functools.cache
def catalogue(where: pathlib.Path = KEPT) -> dict[str, dict]:
  with open(where / 'cases.json') as f:
    return {case['name']: case for case in json.load(f)}


def load(name: str, where: pathlib.Path = KEPT) -> Case:
  meta = catalogue(where)[name]
  case = Case(meta, {}, {}, {}, where)
  with np.load(where / meta['file'], allow_pickle=False) as arrays:
    for path in arrays.files:
      head, key = path.split('/', 1)
      if head == 'in':
        case.inputs[key] = arrays[path]
      elif head == 'out':
        case.outputs[key] = arrays[path]
      else:  # 'w/KEY', or 'w.TAG/KEY' when the case holds several models
        case.weights.setdefault(head[2:], {})[key] = arrays[path]
  return case
