"""Weights as files of other libraries, and as programs."""

import json
import pathlib

import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.interop import files
from dinojax.interop import graphs
from dinojax.interop import hf
from dinojax.interop import meta
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.interop import translate

FORMATS = ('meta', 'hf', 'timm', 'onnx', 'stablehlo')
_GRAPHS = {'onnx': graphs.write_onnx, 'stablehlo': graphs.write_stablehlo}


def write(folder: str, weights: reading.Weights, kind: str, *,
          lossy: bool = False, image_px: int | None = None) -> list[str]:
  """Writes a backbone in a format.

  Args:
    folder: folder to write to, made when missing.
    weights: backbone, with its heads if there are any.
    kind: 'meta': backbone.pth (where PyTorch is installed) and
      backbone.safetensors, as DINOv2's and DINOv3's modules load them
      strictly, and with heads teacher_checkpoint.pth; 'hf': a folder for
      AutoModel.from_pretrained; 'timm': a state dict for timm.create_model;
      'onnx' and 'stablehlo': programs, see `graphs`.
    lossy: leaves out what the format cannot hold, even if it is not zero.
    image_px: side of the images that a program takes, see `graphs.image_px`.

  Returns:
    Sentences about what was written, left out or merged.

  Raises:
    UserError: unknown format, or a model that it cannot hold.
  """
  if kind not in FORMATS:
    raise errors.UserError(
        f'--format={kind} is not known: use one of {", ".join(FORMATS)}')
  if image_px is not None and kind not in _GRAPHS:
    raise errors.UserError(
        f'image_px={image_px} is for programs ({", ".join(_GRAPHS)}), and '
        f'--format={kind} takes any size: leave it out; learned positions are '
        'resampled when weights are imported')
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  if kind in _GRAPHS:
    return _GRAPHS[kind](place, weights, image_px)
  writer = {'meta': _meta, 'hf': _hf, 'timm': _timm}[kind]
  return writer(place, weights, lossy)


def check(config: reading.Config, kind: str):
  """Refuses a model that a format cannot hold, whatever its weights are.

  Args:
    config: configuration of the backbone.
    kind: one of FORMATS.

  Raises:
    UserError: it cannot, with the option that is in the way.
  """
  if kind == 'hf':
    hf.describe(config)
  elif kind == 'timm':
    timm.table(config)
  elif kind == 'meta':
    meta.table(config)
  else:
    graphs.check(config, kind)


def meta_state(weights: reading.Weights) -> dict[str, np.ndarray]:
  """The state dict of DINOv2's or DINOv3's own module."""
  state = translate.to_theirs(weights.params, meta.table(weights.config))
  return meta.restore(state, weights.entries, weights.config)


def _meta(place, weights, lossy) -> list[str]:
  del lossy  # it holds everything
  state = meta_state(weights)
  files.write_safetensors(str(place / 'backbone.safetensors'), state)
  sentences = [f'{len(state)} tensors in {place / "backbone.safetensors"}']
  try:
    import torch
  except ImportError:
    return [*sentences, 'no backbone.pth: PyTorch is not installed']
  tensors = lambda state: {
      key: torch.from_numpy(value.copy()) for key, value in state.items()}
  torch.save(tensors(state), place / 'backbone.pth')
  sentences.append(f'the same in {place / "backbone.pth"}')
  if weights.heads:
    state = {f'backbone.{key}': value for key, value in state.items()}
    for name, head in weights.heads.items():
      state |= {f'{name}.{key}': value for key, value in translate.to_theirs(
          head.params, meta.head_table(head.config)).items()}
    path = place / 'teacher_checkpoint.pth'
    torch.save({'teacher': tensors(state)}, path)
    sentences.append(f'with {", ".join(weights.heads)} in {path}')
  return sentences


def _hf(place, weights, lossy) -> list[str]:
  config = weights.config
  description = hf.describe(config)
  state, dropped = hf.reduce(
      translate.to_theirs(weights.params, hf.table(config)), config,
      lossy=lossy)
  files.write_safetensors(str(place / 'model.safetensors'), state)
  for name, values in (('config.json', description),
                       (hf.PREPROCESSOR, hf.preprocessor(
                           mean=weights.mean, std=weights.std))):
    atomic.write_text(
        place / name, json.dumps(values, indent=2) + '\n')
  sentences = [f'{len(state)} tensors in {place}, for '
               f'{description["architectures"][0]}', *_left_out(dropped),
               *_rounded(config, 'transformers')]
  if (getattr(config, 'position', None) == 'learned'
      and config.interpolate_offset):
    sentences.append(
        'transformers resamples positions without DINOv2\'s offset of 0.1: '
        f'features differ away from {config.image_px} pixels')
  return sentences


def _timm(place, weights, lossy) -> list[str]:
  config = weights.config
  state, dropped = timm.reduce(
      translate.to_theirs(weights.params, timm.table(config)), config,
      lossy=lossy)
  files.write_safetensors(str(place / 'model.safetensors'), state)
  name, options = timm.architecture(config, state)
  options = ''.join(f', {key}={value}' for key, value in options.items())
  sentences = [f'{len(state)} tensors in {place / "model.safetensors"}, for '
               f'timm.create_model({name!r}, num_classes=0{options})',
               *_left_out(dropped), *_rounded(config, 'timm')]
  if getattr(config, 'num_registers', 0) and config.position == 'learned':
    sentences.append('merged: the position of CLS into the CLS token')
  return sentences


def _rounded(config: reading.Config, library: str) -> list[str]:
  if reading.exact(config) == config:
    return []
  return [f'{library} computes RoPE in float32, where these weights round it: '
          'features differ in the third digit']


def _left_out(dropped: list[str]) -> list[str]:
  if not dropped:
    return []
  shown = ', '.join(dropped[:4]) + (' and more' if len(dropped) > 4 else '')
  return [f'left out, {len(dropped)} tensors: {shown}']
