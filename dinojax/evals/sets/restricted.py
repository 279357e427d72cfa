"""Ground truth that is published as a pickle, read without running anything.

A pickle is a program: it may name any function and call it. This reader knows
lists, dicts, tuples, sets, texts, numbers and numpy arrays, and refuses the
rest before it is looked up.
"""

import io
import pickle
from typing import Any

import numpy as np

from dinojax.core import errors

_HINT = ('it may be damaged or made to do harm: get the file again from where '
         'the set is published')


def load(data: bytes, name: str) -> Any:
  """The value that a pickle holds.

  Args:
    data: the whole file.
    name: its path, for messages.

  Raises:
    UserError: a pickle of anything else, or no whole pickle.
  """
  try:
    return _Reader(io.BytesIO(data), encoding='latin1').load()
  except errors.UserError as error:
    raise errors.UserError(f'{name} {error}; {_HINT}') from error
  except Exception as error:  # damaged pickles raise whatever they like
    raise errors.UserError(
        f'{name} is no whole pickle ({type(error).__name__}: {error}); {_HINT}'
    ) from error


class _Reader(pickle.Unpickler):
  """An unpickler that knows the names of numpy's arrays and no others."""

  def find_class(self, module: str, name: str) -> Any:
    known = _KNOWN.get((module.replace('numpy.core', 'numpy._core'), name))
    if known is None:
      raise errors.UserError(
          f'asks for {module}.{name}, and ground truth holds lists, dicts, '
          'texts, numbers and numpy arrays alone')
    return known

  def persistent_load(self, pid: Any) -> Any:
    raise errors.UserError('refers to something outside itself')


def _array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
  """An empty array, which the pickle then fills."""
  if kind is not np.ndarray:
    raise errors.UserError(f'asks for an array of kind {kind!r}')
  return np.ndarray(shape, np.dtype(code))


def _number(dtype: np.dtype, data: bytes | str = b'') -> np.generic:
  """A number of numpy's."""
  if not isinstance(dtype, np.dtype) or dtype.hasobject:
    raise errors.UserError(f'asks for a number of kind {dtype!r}')
  return np.frombuffer(_bytes(data), dtype, 1)[0]


def _bytes(text: bytes | str, encoding: str = 'latin1') -> bytes:
  """Bytes, which old pickles hold as a text."""
  if encoding != 'latin1':
    raise errors.UserError(f'asks for the encoding {encoding!r}')
  return text if isinstance(text, bytes) else text.encode('latin1')


_KNOWN = {
    ('numpy', 'ndarray'): np.ndarray, ('numpy', 'dtype'): np.dtype,
    ('numpy._core.multiarray', '_reconstruct'): _array,
    ('numpy._core.multiarray', 'scalar'): _number,
    ('_codecs', 'encode'): _bytes,
    ('__builtin__', 'bytes'): lambda: b'',  # none, in old pickles
    ('builtins', 'set'): set, ('__builtin__', 'set'): set}
