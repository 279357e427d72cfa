"""Patches of a few fixed images while training: do dense features hold?

DINOv3 shows two curves that tell a run whose dense features degrade while its
k-NN still rises: the mean cosine of CLS with its patches, and that between
patches. Both rise when patches lose what is theirs. A map of the similarity to
one patch is kept beside them, so that it can be seen.

Source: DINOv3, section on patch-level consistency.
"""

from collections.abc import Callable, Mapping
import contextlib
import logging

import einops
from etils import epath
import jax
import numpy as np

from dinojax.core import log
from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import spec
from dinojax.features import stream
from dinojax.metrics import similarity
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib

FILE = 'similarity.jsonl'  # in the workdir
_SPEC = spec.FeatureSpec(('cls', 'map'), 1, 'final')


def source_of(settings: settings_lib.Settings) -> str:
  """The images: of validation, or of training where there are none."""
  return (settings.knn.validation or settings.data.validation
          or settings.data.mixture[0][0])


def indices(source: record_lib.Source, count: int) -> np.ndarray:
  """The records that are looked at, the same at every evaluation."""
  return np.unique(np.linspace(
      0, len(source) - 1, min(count, len(source))).round().astype(int))


def query(shape: tuple[int, int]) -> tuple[int, int]:
  """Row and column of the fixed patch, near the centre of a map."""
  return shape[0] * 45 // 100, shape[1] * 45 // 100


def make(method: method_lib.Method, mesh: jax.sharding.Mesh,
         folder: epath.Path | None = None
         ) -> Callable[..., dict[str, float]] | None:
  """The evaluator of a run; None: it is switched off.

  Args:
    method: networks and settings of the run.
    mesh: the devices.
    folder: workdir, to which maps are written; None: nowhere.

  Returns:
    (step, EMA by student) to patches/cls_cosine and patches/patch_cosine,
    from −1 to 1; NAME/patches/… of several students.
  """
  settings = method.settings
  if not settings.report.patch_images:
    return None
  source = sources.open_source(source_of(settings))

  def evaluate(step: int, emas: Mapping[str, dict],
               stop: Callable[[], bool]) -> dict[str, float]:
    del stop  # it ends soon
    scores, maps = {}, {}
    for name, student in method.each.items():
      prefix = '' if name == sections.ALONE else f'{name}/'
      columns = _measure(student, mesh, emas[name], source)
      if not len(columns['index']):
        logging.warning('none of the images of %s whose patches are compared '
                        'can be read', source.spec)
        continue
      scores |= {f'{prefix}patches/{key}': float(columns[key].mean())
                 for key in ('cls_cosine', 'patch_cosine')}
      maps[name] = {'record': int(columns['index'][0]),
                    'map': np.round(columns['first'][0], 3).tolist()}
    if folder is not None and processes.is_first():
      # What a later start evaluates again takes the place of the old rows.
      with contextlib.closing(log.JsonLines(
          folder / FILE, cut_after=step - 1)) as file:
        file.write({'step': step, 'maps': maps})
    return scores

  return evaluate


def _measure(method: method_lib.Method, mesh: jax.sharding.Mesh, ema: dict,
             source: record_lib.Source) -> dict[str, np.ndarray]:
  """Cosines [r] and maps `first` [r, y, x] of the readable images."""
  s = method.settings
  model = backbone_lib.Backbone(
      method.student.config.backbone, ema['backbone'], mesh,
      mean=s.augment.mean, std=s.augment.std)
  batches = stream.read(
      model, {'all': _SPEC}, source,
      preprocessing.Preprocessing(s.knn.resize_px, s.knn.crop_px),
      stream.Reading(s.report.patch_images, s.data.num_threads,
                     max_pixels=s.data.max_pixels,
                     value_range=tuple(s.data.value_range)),
      indices=indices(source, s.report.patch_images))

  def columns(batch):
    layer, = batch.local()['all']
    patches = einops.rearrange(layer['map'], 'b y x d -> b (y x) d')
    units = similarity.unit(layer['map'])
    row, column = query(units.shape[1:3])
    return {'cls_cosine': similarity.cls_with_patches(layer['cls'], patches),
            'patch_cosine': similarity.between_patches(patches),
            'first': np.einsum('byxd,bd->byx', units, units[:, row, column])}

  return stream.table(mesh, batches, columns)
