"""Checks of exports, each run by the library that it was written for.

The features of one small batch are compared with ours, right after an export
and on the machine that wrote it. If a package is missing or cannot be imported,
the check is left out, and the returned sentence says so.
"""

from collections.abc import Callable
import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.interop import files
from dinojax.interop import graphs
from dinojax.interop import reading
from dinojax.interop import timm
from dinojax.models import convnext
from dinojax.parallel import mesh as mesh_lib

Arrays = dict[str, np.ndarray]
# Features of [b, y, x, c] normalised images by weights, float32, given the
# precision of matrix products: 'highest', or None, the platform's own.
Features = Callable[[reading.Weights, np.ndarray, str | None], Arrays]
# Features are of order one; two float32 programs differ by about 1e-5.
LIMIT = 1e-3
# A StableHLO program runs at its platform's own precision of products, which
# is not float32 on GPUs and TPUs.
_ACCELERATOR_LIMIT = 3e-2


class _NotHere(Exception):
  """The package that would run it, and why it does not."""


def check(folder: str, weights: reading.Weights, kind: str,
          features: Features, *, lossy: bool = False) -> str:
  """Runs what `writing.write` wrote on two images, and compares features.

  Args:
    folder: folder that was written to.
    weights: backbone that was written.
    kind: name of the format, one of `writing.FORMATS`.
    features: computes our features of images.
    lossy: features may differ, as something was left out on purpose.

  Returns:
    A sentence with the largest absolute difference, or why there is none.

  Raises:
    UserError: it does not run, or its features differ by too much.
  """
  place = pathlib.Path(folder)
  try:
    runtime, images, theirs = _RUN[kind](place, weights, features)
  except _NotHere as error:
    return f'not checked: {error}'
  except errors.UserError:
    raise
  except Exception as error:  # of any kind: it is another library's
    raise errors.UserError(
        f'{place} was written and does not run: {type(error).__name__}: '
        f'{error}; the files stay, do not use them') from error
  mesh = mesh_lib.make(devices=mesh_lib.one_device())
  # The same platform, hence the same precision.
  same_platform = kind == 'stablehlo'
  if kind in ('hf', 'timm'):  # the writer says that they know no rounded RoPE
    weights = dataclasses.replace(
        weights, config=reading.exact(weights.config))
  ours = features(weights, images, None if same_platform else 'highest')
  worst = max(float(np.abs(ours[name] - value).max())
              for name, value in theirs.items())
  limit = (_ACCELERATOR_LIMIT
           if same_platform and mesh_lib.platform(mesh) != 'cpu' else LIMIT)
  size = ' × '.join(map(str, images.shape[1:3]))
  names = ', '.join(name for name in graphs.outputs(weights.config)
                    if name in theirs)
  sentence = (f'features by {runtime} differ from ours by at most {worst:.1e} '
              f'({names} of {len(images)} images of {size} pixels)')
  if worst <= limit:
    return f'checked: {sentence}'
  if lossy:
    return f'checked, with parts left out: {sentence}'
  raise errors.UserError(
      f'{place} was written and is wrong: {sentence}, more than {limit:.0e}; '
      'the files stay, do not use them')


def _images(config: reading.Config,
            size: tuple[int, int] | None = None) -> np.ndarray:
  """Two images: of a size, or one that every library takes unchanged."""
  if size is None and isinstance(config, convnext.ConvNeXtConfig):
    size = (128, 192)
  elif size is None and config.position == 'rope':
    size = (4 * config.patch_px, 6 * config.patch_px)
  elif size is None:  # the libraries resample learned positions differently
    size = (config.image_px, config.image_px)
  return np.random.default_rng(0).normal(
      size=(2, *size, config.num_channels)).astype(np.float32)


def _meta(place, weights, features):
  """Meta's modules are in no package: the files are read again."""
  images = _images(weights.config)
  heads = getattr(weights.config, 'num_heads', None)
  for file in ('backbone.safetensors', 'backbone.pth'):
    if not (place / file).exists():
      continue  # without PyTorch there is no backbone.pth
    again = reading.read(str(place / file), num_heads=heads)
    ours = dict(tree.items(weights.params))
    wrong = [name for name, value in tree.items(again.params)
             if not np.array_equal(value, ours[name])]
    if wrong:
      raise errors.UserError(
          f'{place / file} was written and is wrong: it reads as other '
          f'values of {", ".join(wrong[:4])}; do not use it')
  return 'reading it again', images, features(again, images, 'highest')


def _hf(place, weights, features):
  package = _import('transformers')
  _import('torch')
  name, = json.loads((place / 'config.json').read_text())['architectures']
  try:
    module = getattr(package, name)
  except Exception as error:  # it imports what the class needs only now
    raise _missing('transformers', error) from error
  model, report = module.from_pretrained(
      place, local_files_only=True, output_loading_info=True)
  wrong = {kind: list(keys) for kind, keys in report.items() if keys}
  if wrong:
    raise ValueError(f'{name} reports {wrong}')
  images = _images(weights.config)
  run = lambda x: model.eval()(x).last_hidden_state
  return f'transformers\' {name}', images, _split(
      _by_torch(run, images), weights.config)


def _timm(place, weights, features):
  package, torch = _import('timm'), _import('torch')
  config = weights.config
  state = files.read(str(place / 'model.safetensors'))
  name, options = timm.architecture(config, state)
  model = package.create_model(name, num_classes=0, **options).eval()
  model.load_state_dict(
      {key: torch.from_numpy(value) for key, value in state.items()})
  images, runtime = _images(config), f'timm\'s {name}'
  if isinstance(config, convnext.ConvNeXtConfig):
    return runtime, images, {'cls': _by_torch(model, images)}
  return runtime, images, _split(
      _by_torch(model.forward_features, images), config)


def _onnx(place, weights, features):
  onnx, onnxruntime = _import('onnx'), _import('onnxruntime')
  path = str(place / graphs.ONNX)
  onnx.checker.check_model(path, full_check=True)
  session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider'])
  images = _images(weights.config, session.get_inputs()[0].shape[2:])
  names = [output.name for output in session.get_outputs()]
  out = session.run(names, {'images': _channels_first(images)})
  return 'onnxruntime', images, dict(zip(names, out, strict=True))


def _stablehlo(place, weights, features):
  program = jax.export.deserialize((place / graphs.STABLEHLO).read_bytes())
  images = _images(weights.config, program.in_avals[-1].shape[1:3])
  params = files.read(str(place / graphs.PARAMS))
  out = program.call(params, images)
  return 'jax.export', images, {
      name: np.asarray(value) for name, value in out.items()}


_RUN: dict[str, Callable] = {
    'meta': _meta, 'hf': _hf, 'timm': _timm, 'onnx': _onnx,
    'stablehlo': _stablehlo}


def _import(name: str):
  try:
    return importlib.import_module(name)
  except Exception as error:  # torchvision beside another build of torch
    raise _missing(name, error) from error


def _missing(name: str, error: Exception) -> _NotHere:
  if isinstance(error, ModuleNotFoundError) and error.name == name:
    return _NotHere(f'{name} would run it, and is not installed')
  while error.__cause__ is not None:  # transformers hides the first one
    error = error.__cause__
  first = next(iter(str(error).splitlines()), '')
  return _NotHere(f'{name} would run it, and cannot be imported here '
                  f'({type(error).__name__}: {first})')


def _by_torch(run: Callable, images: np.ndarray) -> np.ndarray:
  import torch
  with torch.no_grad():
    return run(torch.from_numpy(_channels_first(images))).numpy()


def _channels_first(images: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _split(tokens: np.ndarray, config: reading.Config) -> Arrays:
  """Tokens [b, n, d] as CLS, registers and patches."""
  first = 1 + getattr(config, 'num_registers', 0)
  parts = {'cls': tokens[:, 0], 'registers': tokens[:, 1:first],
           'patches': tokens[:, first:]}
  return {name: parts[name] for name in graphs.outputs(config)}
