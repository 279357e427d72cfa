"""Published EoMT models: their queries and last blocks as heads.

A file holds a whole fine-tuned ViT: it is read as a backbone by `dinojax.load`,
and as a head on it here.
"""

from collections.abc import Mapping
import dataclasses
import os

import numpy as np

from dinojax.core import errors
from dinojax.core import tree
from dinojax.features import backbone as backbone_lib
from dinojax.features import store
from dinojax.interop import files
from dinojax.interop import hf
from dinojax.interop import names
from dinojax.interop import reading
from dinojax.interop import told
from dinojax.interop import translate
from dinojax.interop.heads import eomt as tables
from dinojax.models.dense import eomt
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import dense
from dinojax.probes.tasks import eomt as task_lib

State = dict[str, np.ndarray]
_SIDE_PX = 640  # of images, where nothing says theirs
# Classes of COCO's panoptic segments, and the first that is stuff.
_COCO, _STUFF = 133, 80


def read(state: State, path: str, model: backbone_lib.Backbone
         ) -> head_lib.Head:
  """The head of an EoMT model.

  Args:
    state: tensors of its file, of which `tables.family` knows the names.
    path: file, or folder of transformers.
    model: the backbone, read from the same.

  Raises:
    UserError: differences alone, another network, or tensors that are
      missing, of other shapes, or of nothing that is known.
  """
  words = tables.family(state)
  if tables.is_differences(state):
    tables.check_alone(state, path)
  if not model.config.has_attention:
    raise errors.UserError(
        f'{path} is EoMT, in the blocks of a ViT, and {model.source} is a '
        'ConvNeXt: give the same file as --model')
  full = tables.plain(state, words)
  if words is tables.HF:
    _check_activation(told.Told.beside(path, 'config.json'))
    full = hf.complete(full)
  made = _head(tables.complete(full, model.config, words), words, model, path,
               tables.probabilities(state, words))
  return dataclasses.replace(
      made, classes=_classes(path, made.task.decoder.num_classes))


def whole(path: str, base: reading.Weights
          ) -> tuple[reading.Weights, head_lib.Head]:
  """A backbone and a head of an authors' file on a DINOv3.

  Args:
    path: the file.
    base: the DINOv3 that it was trained from.

  Raises:
    UserError: another kind of file, or not from this backbone.
  """
  state = files.read(path)
  words = tables.family(state)
  if words is not tables.REPOSITORY:
    raise errors.UserError(
        f'{path} is no EoMT of its authors: --base is for their files on a '
        'DINOv3, which hold differences; leave it out')
  config = reading.exact(base.config)
  if not config.has_attention or config.position != 'rope':
    raise errors.UserError(
        f'{path} is added to a DINOv3, a ViT with RoPE, and --base is none')
  table = tables.backbone_table(config, words)
  full = tables.plain(state, words)
  if tables.is_differences(state):
    full = tables.added(full, tables.reduce(
        translate.to_theirs(base.params, table), config, words))
  full = tables.complete(full, config, words)
  params = _backbone(full, table, reading.shapes(config), path)
  weights = dataclasses.replace(
      base, config=config, params=params, entries={}, heads={}, notes=())
  model = backbone_lib.Backbone.of(weights, source=path)
  return weights, _head(full, words, model, path,
                        tables.probabilities(state, words))


def _head(state: State, words: tables.Names, model: backbone_lib.Backbone,
          path: str, masked: np.ndarray | None) -> head_lib.Head:
  """The head of a whole model, its sizes by its shapes."""
  shape = lambda word: names.shape(state, f'{word}.weight', 2)
  if masked is None or masked.ndim != 1 or not masked.size:
    raise errors.UserError(
        f'{path} lacks attn_mask_probs, which tells how many blocks have '
        'queries: get it again, whole')
  upscales = {i for i in range(16) if (
      f'{words.head.upscale.format(i=i)}.conv1.weight' in state)}
  decoder = eomt.Config(
      model.config.inference(), num_classes=shape(words.head.classes)[0] - 1,
      num_queries=shape(words.head.queries)[0], num_blocks=len(masked),
      num_upscales=len(upscales) or None,
      # Once annealed, as published models are, all patches are seen.
      masked=bool(masked.min() >= 1))
  if decoder.first_block < 0:
    raise errors.UserError(
        f'{path} has queries in {len(masked)} blocks, and {model.source} has '
        f'{model.config.depth}: give the same file as --model')
  count = decoder.num_classes
  task = task_lib.Eomt(
      decoder=decoder, at_pixels=True, pixels=dense.Pixels(
          model.mean, model.std, model.config.side_px),
      stuff=tuple(range(_STUFF, _COCO)) if count == _COCO else ())
  table = tables.backbone_table(model.config, words)
  widths = tuple(task.choices[task_lib.CHOICE].widths(model.config))
  arrays = translate.to_ours(
      state, tables.table(decoder, words), head_lib.shapes_of(task, widths),
      ignored={key for rule in table for key in rule.keys}, source=path)
  is_same = translate.holds(state, model.params, table)
  weights = store.digest(model.config, model.params if is_same else (
      _backbone(state, table, model.params, path)))
  return head_lib.Head(
      task, arrays['params'], {}, head_lib.Origin(path, weights, widths),
      _numbers(count), {'file': os.path.basename(path), 'views': _views(
          path, model)})


def _backbone(state: State, table: names.Table, shapes: tree.Tree,
              path: str) -> tree.Tree:
  """Parameters of the ViT of a whole model."""
  keys = {key for rule in table for key in rule.keys}
  return translate.to_ours(
      {key: value for key, value in state.items() if key in keys}, table,
      shapes, source=path)


def _views(path: str, model: backbone_lib.Backbone) -> dict:
  """Windows by which a model looks at images."""
  values, side = told.Told.beside(path, hf.PREPROCESSOR), None
  if values is not None and isinstance(values.get('size', None), Mapping):
    side = values.inner('size').whole('shortest_edge', None)
  side = side or model.config.learned_px or _SIDE_PX
  return {'short_px': side, 'crop_px': side, 'stride_px': None}


def _classes(path: str, count: int) -> tuple[str, ...]:
  """Names of the classes, where config.json has them, or numbers."""
  values = told.Told.beside(path, 'config.json')
  if values is None or not isinstance(values.get('id2label', None), Mapping):
    return _numbers(count)
  labels = values.inner('id2label')
  return tuple(str(labels.get(str(i), f'class {i}'))[:200]
               for i in range(count))


def _numbers(count: int) -> tuple[str, ...]:
  return tuple(f'class {i}' for i in range(count))


def _check_activation(values: told.Told | None):
  """Refuses a head whose layers have another activation than GELU.

  Raises:
    UserError: they do.
  """
  if values is not None and 'hidden_act' in values:
    values.name('hidden_act', ('gelu',))

