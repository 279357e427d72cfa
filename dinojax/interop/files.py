"""Tensors in files of other libraries, read without running their code.

safetensors first; PyTorch files only as plain tensors (`weights_only`).
"""

from collections.abc import Mapping
import json
import pathlib
import re

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from dinojax.core import errors

State = dict[str, np.ndarray]
_TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
_INDEX = 'model.safetensors.index.json'


def read(path: str) -> State:
  """All tensors of a file, or of a Hugging Face folder.

  Args:
    path: a .safetensors or PyTorch file, or a folder with
      model.safetensors (or its shards).

  Returns:
    Arrays by name; half precision widened to float32. Of a checkpoint that
    nests them ('teacher', 'model', 'state_dict'), the nested ones.

  Raises:
    UserError: missing, damaged, not plain tensors, or a checkpoint that
      has to be consolidated first.
  """
  place = pathlib.Path(path).expanduser()
  if not place.exists():
    raise errors.UserError(f'{path} does not exist: check the path')
  _refuse_sharded(place)
  if place.is_dir():
    return _folder(place)
  if place.suffix == '.safetensors':
    return _safetensors(place)
  if place.suffix in _TORCH_SUFFIXES:
    return _torch(place)
  raise errors.UserError(
      f'{path} is not a weight file that is known: give a .safetensors, '
      f'{", ".join(_TORCH_SUFFIXES)} file, or a folder with '
      'model.safetensors')


def write_safetensors(path: str, state: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] | None = None):
  """Writes arrays by name; 'format: pt' is what other libraries expect."""
  tensors = {key: np.ascontiguousarray(value) for key, value in state.items()}
  safetensors_numpy.save_file(
      tensors, path, metadata={'format': 'pt', **(metadata or {})})


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


def _folder(place: pathlib.Path) -> State:
  index = place / _INDEX
  if index.exists():
    shards = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    state = {}
    for shard in shards:
      if pathlib.Path(shard).name != shard:
        raise errors.UserError(
            f'{index} names a file outside its folder: {shard}')
      state |= _safetensors(place / shard)
    return state
  for name in ('model.safetensors', 'pytorch_model.bin'):
    if (place / name).exists():
      return read(str(place / name))
  raise errors.UserError(
      f'{place} holds no model.safetensors: give the folder of a model as '
      'Hugging Face lays it out, or a file')


def _safetensors(place: pathlib.Path) -> State:
  try:
    with safetensors.safe_open(place, framework='numpy') as file:
      return {key: _widen(file.get_tensor(key)) for key in file.keys()}
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise errors.UserError(
        f'{place} is damaged or not a safetensors file: {error}; download '
        'it again') from error


def _torch(place: pathlib.Path) -> State:
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
        f'{place} is a PyTorch file: `pip install torch` to read it, or '
        'convert it to safetensors where PyTorch is') from error
  import pickle
  try:
    content = torch.load(place, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise errors.UserError(
        f'{place} holds more than tensors and is not opened, because it '
        'could run code of whoever made it: '
        f'{(str(error).splitlines() or [""])[0]}') from error
  except (RuntimeError, EOFError, OSError, KeyError) as error:
    raise errors.UserError(
        f'{place} is damaged or not a PyTorch file: '
        f'{(str(error).splitlines() or [""])[0]}') from error
  return _flatten(content, place)


def _flatten(content, place: pathlib.Path) -> State:
  """The one state dict inside a checkpoint."""
  for name in ('teacher', 'model', 'state_dict'):
    if isinstance(content, dict) and isinstance(content.get(name), dict):
      content = content[name]
  import torch
  if not isinstance(content, dict) or not all(
      isinstance(value, torch.Tensor) for value in content.values()):
    raise errors.UserError(
        f'{place} is not a state dict: it should map names to tensors, as '
        'such or under "teacher", "model" or "state_dict"')
  return {key: value.detach().to(
      torch.float32 if value.is_floating_point() else value.dtype).numpy()
          for key, value in content.items()}


def _widen(value: np.ndarray) -> np.ndarray:
  """float16 and bfloat16 as float32."""
  is_float = value.dtype.kind == 'f' or value.dtype.name == 'bfloat16'
  return value.astype(np.float32) if is_float else value
