"""Tiny weight files of every format, and what reads damaged ones.

A reader takes the bytes under every name that such a file may have, so that
one child serves all formats. Words are 'read' and 'refused'.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np

from dinojax.core import errors
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import reading
from dinojax.interop import store
from dinojax.interop import writing
from dinojax.models import vit

CONFIG = vit.ViTConfig(
    8, 1, 2, 2, image_px=4, ffn_hidden=8, interpolate_offset=0.0)
V3 = dataclasses.replace(
    CONFIG, position='rope', num_registers=1, mask_k_bias=True,
    norm_epsilon=1e-5)
_BINARY = ('x.safetensors', 'x.pth', 'x.npz')
# A word that each JSON file has, and its place; without any, all places.
_PLACES = {b'weight_map': 'hf/{}/model.safetensors.index.json',
           b'image_processor': f'hf/{{}}/{hf.PREPROCESSOR}',
           b'model_type': 'hf/{}/config.json',
           b'"kind"': f'ours/{{}}/{store.DESCRIPTION}'}


def tiny(config: vit.ViTConfig) -> reading.Weights:
  """Random parameters; the bias of keys is zero, as files of v3 need it."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(
      np.float32), reading.shapes(config))
  params['blocks']['attn']['qkv']['bias'][:, 8:16] = 0
  return reading.Weights(
      config, params, {}, 'meta', value_range=(0.0, 4095.0))


def seeds() -> dict[str, bytes]:
  """Whole files by format: those of PyTorch where it is installed."""
  state = writing.meta_state(tiny(CONFIG))
  contents, place = {}, pathlib.Path(tempfile.mkdtemp())
  try:
    files.write_safetensors(str(place / 'a'), state)
    contents['safetensors'] = (place / 'a').read_bytes()
    files.write_safetensors(
        str(place / 'a'), writing.meta_state(tiny(V3)))
    contents['safetensors, RoPE'] = (place / 'a').read_bytes()
    store.save(str(place / 'ours'), tiny(CONFIG))
    contents['ours'] = (place / 'ours' / store.TENSORS).read_bytes()
    npz = io.BytesIO()
    np.savez(npz, **state)
    contents['npz'] = npz.getvalue()
    contents |= _of_torch(state)
  finally:
    shutil.rmtree(place)
  return contents


def _of_torch(state: dict[str, np.ndarray]) -> dict[str, bytes]:
  try:
    import torch
  except ImportError:
    return {}
  tensors = {key: torch.from_numpy(value) for key, value in state.items()}
  out = {}
  for name, content, new in (
      ('pth, new', tensors, True), ('pth, old', tensors, False),
      ('pt', {'epoch': 3, 'student': tensors, 'teacher': tensors}, True)):
    data = io.BytesIO()
    torch.save(content, data, _use_new_zipfile_serialization=new)
    out[name] = data.getvalue()
  return out


def folders(root: pathlib.Path):
  """A folder of transformers with an index, and one of our own."""
  for name, config in (('v2', CONFIG), ('v3', V3)):
    weights = tiny(config)
    writing.write(str(root / 'hf' / name), weights, 'hf')
    store.save(str(root / 'ours' / name), weights)
    index = {'weight_map': {'embeddings.cls_token': 'model.safetensors'}}
    (root / 'hf' / name / 'model.safetensors.index.json').write_text(
        json.dumps(index))


def texts() -> dict[str, bytes]:
  """The JSON files beside weights."""
  with tempfile.TemporaryDirectory() as place:
    folders(pathlib.Path(place))
    return {
        f'{path.parent.name}/{path.name}': path.read_bytes()
        for path in sorted(pathlib.Path(place).rglob('*.json'))}


def _try(read, *arguments, **options) -> bool:
  try:
    read(*arguments, **options)
  except errors.UserError as error:
    assert str(error) and len(str(error)) < 3000, error
    return False
  return True


def binary(data: bytes) -> str:
  """One file, under every name."""
  done = False
  for name in _BINARY:
    pathlib.Path(name).write_bytes(data)
    done |= _try(reading.read, name, num_heads=2)
  if b'params/' in data:
    if not store.is_ours('one'):
      store.save('one', tiny(CONFIG))
    pathlib.Path('one', store.TENSORS).write_bytes(data)
    done |= _try(store.load, 'one')
  return 'read' if done else 'refused'


def text(data: bytes) -> str:
  """A JSON file, in the place that its words say."""
  if not pathlib.Path('hf').exists():
    folders(pathlib.Path())
  version = 'v3' if b'rope' in data else 'v2'
  done = False
  for place in [place for word, place in _PLACES.items() if word in data
                ] or _PLACES.values():
    path = pathlib.Path(place.format(version))
    whole = path.read_bytes()
    path.write_bytes(data)
    done |= _try(store.load if path.parts[0] == 'ours' else reading.read,
                 str(path.parent))
    path.write_bytes(whole)
  return 'read' if done else 'refused'
