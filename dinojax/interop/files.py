"""Tensors in files of other libraries, read without running their code.

safetensors first; PyTorch files only as plain tensors, see `torch_files`.
Whatever a library raises about a file becomes a UserError with its name.
"""

from collections.abc import Mapping
import os
import pathlib
import re

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from dinojax.core import errors
from dinojax.interop import kinds
from dinojax.interop import told

_TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
_MAX_NAME = 500
_INDEX = 'model.safetensors.index.json'
_SHARD = re.compile(r'\w[\w.-]*\.safetensors')
# What is read, in safetensors' words.
_DTYPES = ('F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U64',
           'U32', 'U16', 'U8', 'BOOL')


def read(path: str) -> kinds.State:
  """All tensors of a file, or of a Hugging Face folder.

  Args:
    path: a .safetensors or PyTorch file, or a folder with
      model.safetensors (or its shards).

  Returns:
    Arrays by name, names of nested dicts joined by dots; half precision
    widened to float32. Where all of them are in 'teacher', 'model' or
    'state_dict', their names are without it.

  Raises:
    UserError: missing, damaged, not plain tensors, or a checkpoint that
      has to be consolidated first.
  """
  place = pathlib.Path(path)
  try:
    exists = place.exists()
  except (OSError, ValueError) as error:  # too long, a loop, a null byte
    raise errors.UserError(f'{path!r} cannot be looked for: {error}'
                           ) from error
  if not exists:
    raise errors.UserError(f'{path} does not exist: check the path')
  _refuse_sharded(place)
  if place.is_dir():
    return _printable(_folder(place), path)
  if place.suffix == '.safetensors':
    return _printable(_safetensors(place), path)
  if place.suffix in _TORCH_SUFFIXES:
    from dinojax.interop import torch_files  # PyTorch is only for these
    return _printable(torch_files.read(place), path)
  raise errors.UserError(
      f'{path} is not a weight file that is known: give a .safetensors, '
      f'{", ".join(_TORCH_SUFFIXES)} file, or a folder with '
      'model.safetensors')


def _printable(state: kinds.State, path: str) -> kinds.State:
  """The tensors, whose names messages will show on a terminal."""
  for key in state:
    if not key.isprintable() or len(key) > _MAX_NAME:
      raise errors.UserError(
          f'{path} holds a tensor named {told.text(key)}, which no model has: '
          'it is damaged, or made to mislead')
  return state


def write_safetensors(path: str, state: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] | None = None):
  """Writes arrays by name; 'format: pt' is what other libraries expect."""
  tensors = {key: np.ascontiguousarray(value) for key, value in state.items()}
  pathlib.Path(path).write_bytes(b'')  # its mode is what the umask gives
  mode = os.stat(path).st_mode & 0o777
  # The library renames a private temporary file to this name.
  safetensors_numpy.save_file(
      tensors, path, metadata={'format': 'pt', **(metadata or {})})
  os.chmod(path, mode)


def _refuse_sharded(place: pathlib.Path):
  if place.is_dir() and (place / '.metadata').exists():
    raise errors.UserError(
        f'{place} is a distributed checkpoint of DINOv3 training: consolidate '
        'it with `python -m torch.distributed.checkpoint.format_utils '
        f'dcp_to_torch {place} consolidated.pth`, or use the '
        'teacher_checkpoint.pth that an evaluation wrote')
  if re.search(r'\.rank_?\d+\.pth$', place.name):
    raise errors.UserError(
        f'{place} holds one process\'s part of a DINOv2 training: use the '
        'eval/training_*/teacher_checkpoint.pth that the training wrote, '
        'which is whole')


def _folder(place: pathlib.Path) -> kinds.State:
  index = place / _INDEX
  if index.exists():
    state: kinds.State = {}
    for shard in _shards(index):
      part = _safetensors(place / shard)
      twice = sorted(part.keys() & state.keys())
      if twice:
        raise errors.UserError(
            f'{place / shard} holds {twice[0]}, which another shard holds '
            'too: download the folder again')
      state |= part
    return state
  # The last is what we write for Meta's own code.
  for name in ('model.safetensors', 'pytorch_model.bin',
               'backbone.safetensors'):
    if (place / name).exists():
      return read(str(place / name))
  others = sorted(path.name for path in place.iterdir()
                  if path.suffix in ('.safetensors', *_TORCH_SUFFIXES))
  raise errors.UserError(
      f'{place} holds no model.safetensors: ' + (
          f'give one of its files, such as {place / others[0]}' if others
          else 'give the folder of a model as Hugging Face lays it out, or a '
          'file'))


def _shards(index: pathlib.Path) -> list[str]:
  """The files that an index names, all of them in its folder."""
  names = told.Told.read(index).get('weight_map')
  if not isinstance(names, dict) or not names:
    raise errors.UserError(
        f'{index}: weight_map={told.text(names)} should map tensors to files; '
        'download it again')
  for name in names.values():
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
      raise errors.UserError(
          f'{index} names {told.text(name)}: it should be a .safetensors file '
          'in the same folder; download the index again')
    if not (index.parent / name).is_file():
      raise errors.UserError(
          f'{index} names {name}, which is not in the folder: download the '
          'rest of the model')
  return sorted(set(names.values()))


def _safetensors(place: pathlib.Path) -> kinds.State:
  try:
    with safetensors.safe_open(place, framework='numpy') as file:
      state = {}
      for key in file.keys():
        dtype = file.get_slice(key).get_dtype()
        if dtype not in _DTYPES:
          raise errors.UserError(
              f'{place}: {told.text(key)} is of dtype {dtype}, which is not '
              'read: save it as float32, float16 or bfloat16')
        state[key] = _widen(file.get_tensor(key))
      return state
  except errors.UserError:
    raise
  except Exception as error:  # whatever the library makes of damaged bytes
    what = kinds.mistaken(place) if os.access(place, os.R_OK) else None
    if what:
      raise errors.UserError(f'{place} is {what}') from error
    raise errors.UserError(
        f'{place} is damaged or not a safetensors file: '
        f'{kinds.first_line(error)}; download it again') from error


def _widen(value: np.ndarray) -> np.ndarray:
  """float16 and bfloat16 as float32."""
  is_float = value.dtype.kind == 'f' or value.dtype.name == 'bfloat16'
  return value.astype(np.float32, copy=False) if is_float else value
