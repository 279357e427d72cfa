"""PyTorch files as plain tensors: nothing that they hold is run."""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import pickle
from typing import Any
import warnings
import zipfile

import numpy as np

from dinojax.core import errors
from dinojax.interop import kinds
from dinojax.interop import told

_NESTS = ('teacher', 'model', 'state_dict')
_MAX_NESTING = 16
# A file is as long as what it holds, but for views and a little around it.
_SPARE_BYTES = 2**26
_DTYPES = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32',
           'int16', 'int8', 'uint8', 'bool')


def read(place: pathlib.Path) -> kinds.State:
  """The tensors of a file that `torch.save` wrote.

  Args:
    place: an existing file.

  Returns:
    As `files.read`.

  Raises:
    UserError: PyTorch is not installed, the file is not one of its own or
      damaged, holds more than tensors, or tensors of kinds that are not read.
  """
  try:
    what = kinds.mistaken(place)
    size = place.stat().st_size
  except OSError as error:
    raise errors.UserError(
        f'{place} cannot be read: {error.strerror or error}') from error
  if what and not what.startswith('a zip'):
    raise errors.UserError(f'{place} is {what}')
  if what:
    _check_archive(place, size)
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
        f'{place} is a PyTorch file: `pip install torch` to read it, or '
        'convert it to safetensors where PyTorch is') from error
  try:
    with _quiet():
      content = torch.load(place, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise errors.UserError(
        f'{place} is damaged, or holds more than tensors and is not opened, '
        'because it could run code of whoever made it: '
        f'{_reason(error)}') from error
  except Exception as error:  # whatever PyTorch makes of damaged bytes
    raise errors.UserError(
        f'{place} is damaged or not a PyTorch file: '
        f'{type(error).__name__}: {kinds.first_line(error)}') from error
  return _arrays(content, place, size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without PyTorch's warnings on forms that it will drop one day."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def _reason(error: Exception) -> str:
  """Says what PyTorch refused, without its advice to open the file anyway."""
  lines = [line.strip() for line in str(error).splitlines()]
  told_by = [line for line in lines if 'Unsupported' in line
             or 'WeightsUnpickler error' in line or 'GLOBAL' in line]
  return (told_by or lines or [type(error).__name__])[0][:200]


def _check_archive(place: pathlib.Path, size: int):
  """Refuses programs, and archives that would grow when they are read."""
  try:
    with zipfile.ZipFile(place) as archive:
      entries = archive.infolist()
  except Exception as error:  # zipfile has no end of them on damaged bytes
    raise errors.UserError(
        f'{place} is damaged or not a PyTorch file: '
        f'{kinds.first_line(error)}; download it again') from error
  if any(entry.filename.endswith('/constants.pkl') for entry in entries):
    raise errors.UserError(
        f'{place} is a TorchScript program: save the state_dict of the model '
        'instead')
  whole = sum(entry.file_size for entry in entries)
  if whole > size + _SPARE_BYTES:
    raise errors.UserError(
        f'{place} of {size} bytes says that it holds {whole}: it is damaged, '
        'or made to fill the memory; it is not opened')


def _arrays(content: Any, place: pathlib.Path, size: int) -> kinds.State:
  """Arrays by dotted names; what is no tensor is not ours to read."""
  import torch
  tensors = dict(_tensors(content, torch.Tensor))
  if not tensors:
    raise errors.UserError(
        f'{place} is not a state dict: it should map names to tensors, as '
        'such or under "teacher", "model" or "state_dict"')
  for name in _NESTS:
    if all(key.startswith(f'{name}.') for key in tensors):
      tensors = {key.removeprefix(f'{name}.'): x for key, x in tensors.items()}
  return {key: _array(key, value, place, size)
          for key, value in tensors.items()}


def _tensors(content: Any, kind: type, path: tuple[str, ...] = ()
             ) -> Iterator[tuple[str, Any]]:
  if isinstance(content, kind):
    if path:
      yield '.'.join(path), content
  elif isinstance(content, Mapping) and len(path) < _MAX_NESTING:
    for key, value in content.items():
      yield from _tensors(value, kind, (*path, str(key)))


def _array(key: str, value: Any, place: pathlib.Path,
           size: int) -> np.ndarray:
  import torch
  dtype = str(value.dtype).removeprefix('torch.')
  kind = ('a sparse tensor' if value.layout != torch.strided
          else 'a quantized tensor' if value.is_quantized
          else 'without values (a tensor of the meta device)' if value.is_meta
          else f'of dtype {dtype}' if dtype not in _DTYPES else None)
  if kind:
    raise errors.UserError(
        f'{place}: {told.text(key)} is {kind}, which is not read: save it as '
        'a plain tensor of float32, float16 or bfloat16')
  if value.numel() * value.element_size() > size:
    raise errors.UserError(
        f'{place}: {told.text(key)} is of shape {tuple(value.shape)}, more '
        'than the file can hold: save it with .contiguous(), or get the file '
        'again')
  try:
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()
  except Exception as error:  # of subclasses of tensors, and of damaged ones
    raise errors.UserError(
        f'{place}: {told.text(key)} is no plain tensor: '
        f'{kinds.first_line(error)}') from error
