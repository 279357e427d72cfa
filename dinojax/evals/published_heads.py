"""Published heads of depth and segmentation, read for a backbone.

What a head is, its tensors tell by their names and shapes. What they do not
tell, such as the range of depths, is a flag.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import lists
from dinojax.evals import detection_heads
from dinojax.evals import published_eomt
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import hub
from dinojax.interop import names
from dinojax.interop import told
from dinojax.interop import translate
from dinojax.interop.heads import detector as detector_tables
from dinojax.interop.heads import dpt as dpt_tables
from dinojax.interop.heads import eomt as eomt_tables
from dinojax.interop.heads import linear as linear_tables
from dinojax.interop.heads import mask2former as mask2former_tables
from dinojax.models.dense import dpt
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import detect
from dinojax.probes.tasks import mask2former
from dinojax.probes.tasks import masks
from dinojax.probes.tasks import segment

State = dict[str, np.ndarray]
_BACKBONES = ('backbone.', mask2former_tables.BACKBONE)
_PREFIXES = ('decode_head.', 'segmentation_model.1.')
_OF_MMSEG = 'transformer_decoder.'  # in the segmentor of DINOv2
_RANGES = {'nyu': 10.0, 'kitti': 80.0}  # metres, of names of DINOv2's files
_SYNTHMIX, _CANOPIES, _MIN_DEPTH = 100.0, 96.0, 1e-3
_CANOPY_LAYERS = (5, 11, 17, 23)
# Views in the evaluation of DINOv3's segmentor on ADE20K.
_SEGMENTOR = {'short_px': 896, 'crop_px': 896, 'stride_px': 596}
_WHAT = ('linear and DPT heads of depth and linear heads of segmentation of '
         'DINOv2 and DINOv3, Mask2Former and detectors of DINOv3, DPT heads of '
         'transformers, and EoMT models')


def read(path: str, model: backbone_lib.Backbone, *,
         max_depth: float | None = None,
         classes: str | None = None) -> head_lib.Head:
  """A published head.

  Args:
    path: its file, the folder of a model of transformers, or hf:OWNER/NAME.
    model: the backbone that it is for.
    max_depth: greatest depth in metres, where the file does not say it.
    classes: file with the names of the classes, a line each; None: numbers.

  Raises:
    UserError: nothing there, nothing that is known, or tensors that are
      missing, of other shapes, or none of a head; of another backbone.
  """
  if path.startswith(hub.PREFIX):
    path, _ = hub.fetch(path)
  if os.path.isdir(path) and not any(
      name.endswith(('.safetensors', '.json')) for name in os.listdir(path)):
    raise errors.UserError(
        f'{path} holds no head: give a folder in heads/ of the results of '
        '`dinojax evaluate`, or a published file')
  state = files.read(path)
  if eomt_tables.family(state):
    head = published_eomt.read(state, path, model)
    return head if classes is None else dataclasses.replace(
        head, classes=_classes(classes, head.task.decoder.num_classes))
  state = {name: value for name, value in state.items()
           if not name.startswith(_BACKBONES)
           and not name.endswith('num_batches_tracked')}
  for prefix in _PREFIXES:
    if all(name.startswith(prefix) for name in state):
      state = {name.removeprefix(prefix): value
               for name, value in state.items()}
  if detector_tables.is_detector(state):
    state = detector_tables.checked(state, path)
  task, table = _understood(state, path, max_depth, model)
  widths = tuple(next(iter(task.choices.values())).widths(model.config))
  arrays = translate.to_ours(
      state, table, head_lib.shapes_of(task, widths), source=path,
      ignored=dpt_tables.HF_UNUSED)
  kinds = ()
  if isinstance(task, segment.Segment):
    kinds = _classes(classes, task.num_outputs)
  elif isinstance(task, masks.Queries | detect.Detect):
    kinds = _classes(classes, task.decoder.num_classes)
  return head_lib.Head(
      task, arrays['params'], arrays.get('stats', {}),
      head_lib.Origin(model.source, '', widths), kinds,
      {'file': os.path.basename(path)} | _views(task))


def _views(task: Any) -> dict[str, Any]:
  """Views of a published head, where its evaluation has its own."""
  if isinstance(task, mask2former.Mask2Former):
    return {'views': _SEGMENTOR}
  if getattr(task, 'spacing', '') == 'mixed':  # metres hang on the scale
    return {'views': {'flips': False, 'native': True}}
  return {}


def _understood(state: State, path: str, max_depth: float | None,
                model: backbone_lib.Backbone) -> tuple[Any, names.Table]:
  """Task and table of a head, by the names of its tensors.

  Raises:
    UserError: nothing that is known, or of another backbone.
  """
  pixels = dense.Pixels(model.mean, model.std, model.config.side_px)
  words = next((words for words in (
      dpt_tables.META, dpt_tables.HF_CHM, dpt_tables.HF_DPT)
                if _first(words) in state), None)
  if words:
    return _dpt(state, words, path, max_depth, model, pixels)
  if any(name.startswith(mask2former_tables.QUERIES) for name in state):
    return _mask2former(state, path, model)
  if detector_tables.is_detector(state):
    return _detector(state, path, model, pixels)
  return _linear(state, path, max_depth, model.config.embed_dim, model, pixels)


def _first(words: dpt_tables.DptNames) -> str:
  """A tensor that every DPT head of a family has."""
  return f'{words.prefix}{words.project.format(i=0)}.weight'


def _dpt(state: State, words: dpt_tables.DptNames, path: str,
         max_depth: float | None, model: backbone_lib.Backbone,
         pixels: dense.Pixels) -> tuple[depth.DptDepth, names.Table]:
  """Task and table of a DPT head, sizes by its shapes."""
  part = lambda name: words.prefix + name
  shape = lambda name: _shape(state, part(name), path)
  has = lambda name: part(name) in state
  config = dpt.Config(
      channels=shape(f'{words.conv.format(i=0)}.weight')[0],
      projected=tuple(shape(f'{words.project.format(i=i)}.weight')[0]
                      for i in range(dpt.LEVELS)),
      num_outputs=shape(f'{words.head.format(n=4)}.weight')[0],
      hidden=shape(f'{words.head.format(n=2)}.weight')[0],
      readout='project' if has(f'{words.readout.format(i=0)}.weight')
      else 'ignore',
      norm=bool(words.norm) and has(f'{words.norm.format(i=0)}.weight'),
      bias=has(f'{words.unit.format(i=0, u=2, n=1)}.bias'),
      projects=has(f'{words.last}.weight'))
  layers = depth.read_layers(model.config.depth, dpt.LEVELS)
  if config.num_outputs == 1:  # DINOv2's
    values = dict(place='raw', clamps=True, max_depth=_reach(path, max_depth))
  elif not config.projects:
    layers = _canopy_layers(path, model)
    values = dict(spacing='mixed', normalize='mixed',
                  max_depth=max_depth or _CANOPIES)
  else:
    values = dict(max_depth=max_depth or _SYNTHMIX)
  return depth.DptDepth(head=config, layers=layers, min_depth=_MIN_DEPTH,
                        pixels=pixels, **values), dpt_tables.table(
                            config, words)


def _canopy_layers(path: str,
                   model: backbone_lib.Backbone) -> tuple[int, ...]:
  """Layers that a head of canopy heights reads: config.json says, else of L.

  Raises:
    UserError: layers that the backbone does not have.
  """
  values = told.Told.beside(path, 'config.json')
  layers = _CANOPY_LAYERS
  if values is not None and hf.INNER in values:
    inner = values.inner(hf.INNER)
    if 'out_indices' in inner:  # counted from the embeddings
      layers = tuple(i - 1 for i in inner.wholes('out_indices', dpt.LEVELS))
  if max(layers) >= model.config.depth:
    raise errors.UserError(
        f'{path} reads layers {", ".join(map(str, layers))} of its backbone, '
        f'and {model.source} has {model.config.depth}: give the backbone that '
        'the head is for')
  return layers


def _mask2former(state: State, path: str, model: backbone_lib.Backbone
                 ) -> tuple[mask2former.Mask2Former, names.Table]:
  """Task and table of a Mask2Former, sizes by its shapes.

  Raises:
    UserError: a file that is not whole, or of another backbone.
  """
  config = model.config
  sizes = mask2former_tables.sizes_of(state, config.side_px, path)
  width = sizes.adapter.width
  if not config.has_attention or width != config.embed_dim:
    raise errors.UserError(
        f'{path} reads the blocks of a ViT of width {width}, and '
        f'{model.source} has width {config.embed_dim}: give the backbone that '
        'the head is for')
  return mask2former.Mask2Former(
      decoder=sizes, layers=depth.read_layers(
          config.depth, sizes.adapter.num_blocks),
      pixels=dense.Pixels(model.mean, model.std, sizes.adapter.unit_px),
      ), mask2former_tables.table(sizes)


def _detector(state: State, path: str, model: backbone_lib.Backbone,
              pixels: dense.Pixels) -> tuple[detect.Detect, names.Table]:
  """Task and table of a detector, sizes by its shapes.

  Raises:
    UserError: a file that is not whole, or of another backbone.
  """
  config = model.config
  if not config.has_attention:
    raise errors.UserError(
        f'{path} reads the blocks of a ViT, and {model.source} is a ConvNeXt: '
        'give the backbone that the head is for')
  layers = detection_heads.read_layers(config.depth)
  sizes = detector_tables.sizes_of(
      state, spec.FeatureSpec(('map',), layers).widths(config),
      config.side_px, path)
  return detect.Detect(decoder=sizes, layers=layers, pixels=pixels), (
      detector_tables.table(sizes))


def _linear(state: State, path: str, max_depth: float | None, width: int,
            model: backbone_lib.Backbone, pixels: dense.Pixels
            ) -> tuple[dense.Linear, names.Table]:
  """Task and table of a linear head, sizes by its shapes.

  Raises:
    UserError: nothing that is known.
  """
  kind = next((kind for kind, words in linear_tables.NAMES.items() if (
      f'{words.conv}.weight' in state
      and (f'{words.norm}.weight' in state if words.norm else (
          'batchnorm_layer.weight' not in state)))), None)
  if any(name.startswith(_OF_MMSEG) for name in state):
    raise errors.UserError(
        f'{path} is the Mask2Former of DINOv2, whose adapter changes the '
        'features within its ViT: it is not read; give the segmentor of '
        'DINOv3, or a linear head of DINOv2')
  if kind is None:
    raise errors.UserError(
        f'{path} holds no head that is known (it has '
        f'{", ".join(sorted(state)[:4])}, …): give one of {_WHAT}')
  words = linear_tables.NAMES[kind]
  outputs, inputs = _shape(state, f'{words.conv}.weight', path)[:2]
  is_v2_depth = kind == 'depth_v2'
  each = width * (1 + is_v2_depth)
  count, rest = divmod(inputs, each)
  if rest or not count:
    raise errors.UserError(
        f'{path} reads {inputs} values, and a layer of {model.source} gives '
        f'{each}: give the backbone that the head is for')
  shared = dict(num_outputs=outputs, width=inputs, pixels=pixels)
  if kind.startswith('segmentation'):
    return segment.Segment(layers=count, **shared), linear_tables.table(words)
  shared |= dict(layers=depth.read_layers(model.config.depth, count),
                 min_depth=_MIN_DEPTH)
  if is_v2_depth:
    shared |= dict(cls=True, place='raw', norm=False, upsample=4, clamps=True,
                   max_depth=_reach(path, max_depth))
  else:
    shared |= dict(max_depth=max_depth or _RANGES['nyu'])
  return depth.Depth(**shared), linear_tables.table(words)


def _shape(state: Mapping[str, np.ndarray], name: str, path: str
           ) -> tuple[int, ...]:
  """The shape of a convolution's weights.

  Raises:
    UserError: there are none.
  """
  if name not in state or state[name].ndim != 4:
    raise errors.UserError(
        f'{path} is damaged or no head: it lacks {name}, the weights of a '
        'convolution; get it again')
  return state[name].shape


def _reach(path: str, max_depth: float | None) -> float:
  """Greatest depth of DINOv2's heads, which have it in their names.

  Raises:
    UserError: neither the name nor a flag says it.
  """
  if max_depth:
    return max_depth
  name = pathlib.PurePath(path).name
  known = [reach for word, reach in _RANGES.items() if word in name]
  if len(known) != 1:
    raise errors.UserError(
        f'{name} does not say how far its depths reach: give --max_depth=10 '
        '(NYU) or --max_depth=80 (KITTI)')
  return known[0]


def _classes(path: str | None, count: int) -> tuple[str, ...]:
  """Names of the classes.

  Raises:
    UserError: a file with another number of names.
  """
  if path is None:
    return tuple(f'class {i}' for i in range(count))
  lines = lists.lines(epath.Path(path))
  if len(lines) != count:
    raise errors.UserError(
        f'{path} has {len(lines)} names and the head {count} classes: give a '
        'line for each')
  return tuple(lines)
