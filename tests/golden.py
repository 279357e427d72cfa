"""Golden cases: numbers made by running the reference implementations."""

import dataclasses
import functools
import json
import os
import pathlib

import numpy as np

DEFAULT_DIR = pathlib.Path(__file__).parent / 'goldens'


def folder() -> pathlib.Path:
  """The folder of cases: `DINOJAX_GOLDENS`, else the copies kept here."""
  return pathlib.Path(os.environ.get('DINOJAX_GOLDENS', DEFAULT_DIR))


@dataclasses.dataclass(frozen=True)
class Case:
  """One case: arrays by name, weights by tag ('' when there is one model)."""

  meta: dict
  inputs: dict[str, np.ndarray]
  weights: dict[str, dict[str, np.ndarray]]
  outputs: dict[str, np.ndarray]

  def check(self, name: str, got, **tolerance):
    """Asserts that `got` equals output `name` within the case's tolerance."""
    stated = self.meta['tolerance']
    np.testing.assert_allclose(
        np.asarray(got), self.outputs[name],
        rtol=tolerance.get('rtol', stated.get('rtol', 1e-4)),
        atol=tolerance.get('atol', stated.get('atol', 1e-5)),
        err_msg=f'{self.meta["name"]}: {name}')


@functools.cache
def catalogue() -> dict[str, dict]:
  with open(folder() / 'cases.json') as f:
    return {case['name']: case for case in json.load(f)}


def load(name: str) -> Case:
  meta = catalogue()[name]
  case = Case(meta, {}, {}, {})
  with np.load(folder() / meta['file'], allow_pickle=False) as arrays:
    for path in arrays.files:
      head, key = path.split('/', 1)
      if head == 'in':
        case.inputs[key] = arrays[path]
      elif head == 'out':
        case.outputs[key] = arrays[path]
      else:  # 'w/KEY', or 'w.TAG/KEY' when the case holds several models
        case.weights.setdefault(head[2:], {})[key] = arrays[path]
  return case
