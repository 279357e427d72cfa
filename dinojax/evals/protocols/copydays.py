"""Copy detection: originals of changed copies, among distractors.

Source: facebookresearch/dino, eval_copy_detection.py: CLS and GeM of the
  patches, whitened; average precision over the first 20.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import protocol
from dinojax.evals import ranking_picture
from dinojax.evals import whole
from dinojax.evals.sets import copydays
from dinojax.evals.sets import image_files
from dinojax.features import spec
from dinojax.metrics import copies
from dinojax.metrics import retrieval
from dinojax.parallel import processes

TITLE = 'originals of changed copies among distractors (mAP)'
COST = 'copies, originals, distractors and whitening images once'
PIXELS = lambda settings: settings.image_px or ''
_SOURCE = 'a source of images, such as folder:DIR; no labels are needed'
ROLES = {
    'images': protocol.Role(
        opens=copydays.open_set,
        what='copydays:DIR, or copies:DIR with a sub-folder a group'),
    'distractors': protocol.Role(needed=False, what=_SOURCE),
    'whitening': protocol.Role(needed=False, what=_SOURCE)}
_TOKENS = spec.FeatureSpec(('cls', 'patches'))


@dataclasses.dataclass(frozen=True)
class Settings:
  """Mean average precision of originals among distractors."""

  images: str | None = None  # Set of originals and copies, copydays:DIR.
  # Source of images that are searched beside the originals; None: there are
  # none, and the task is easier than the papers'.
  distractors: str | None = None
  # Source of other images that descriptors are whitened on; None: they are not
  # whitened.
  whitening: str | None = None
  # Length of the long side of whole images, in pixels; None: squares, as of
  # the other protocols.
  image_px: fields.Positive | None = None
  gem_power: fields.Above0 = 4.0  # Exponent of the mean of the patches.
  top: fields.Positive = 20  # Length of the ranking that is looked at.


@dataclasses.dataclass(frozen=True)
class Descriptor:
  """CLS and the generalised mean of the patches, on the devices."""

  power: float

  def __call__(self, outputs: dict) -> dict:
    layer, = outputs['tokens']
    return {'descriptor': copies.descriptors(
        layer['cls'], layer['patches'], power=self.power)}


def check(settings: Settings, config: Any):
  """Refuses images smaller than a patch.

  Raises:
    UserError: they are.
  """
  whole.check(settings.image_px, config, 'copydays.image_px')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sum(sizes.values())


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Average precision of every copy, a set of results for each subset.

  Raises:
    UserError: no copy, or no original, can be read.
  """
  each = job.sets['images'][0]
  sources = [each.images, *(
      source for role in ('distractors', 'whitening')
      for source in job.sets[role])]
  together = image_files.Joined(each.spec, sources)
  rows = whole.features(
      job, together, {'tokens': _TOKENS}, Descriptor(settings.gem_power),
      long_px=settings.image_px)
  places = together.parts()
  beside = places[1] if job.sets['distractors'] else places[0][:0]
  searched = np.r_[places[0][:each.num_originals], beside]
  searched = searched[np.isin(searched, rows['index'])]
  at = lambda some: np.searchsorted(rows['index'], some)
  descriptors = rows['descriptor']
  if job.sets['whitening']:
    of = at(places[-1][np.isin(places[-1], rows['index'])])
    if not len(of):
      raise errors.UserError(
          f'{job.sets["whitening"][0].spec} has no readable image: give '
          'another copydays.whitening')
    descriptors = copies.whitened(descriptors, descriptors[of])
  facts = each.counts() | {
      'distractors': len(beside), 'whitening': len(places[-1]) if (
          job.sets['whitening']) else 'none', 'searched': len(searched)}
  return [_measured(each, name, together, subset[np.isin(
      subset, rows['index'])], searched, descriptors, at, settings, facts)
          for name, subset in each.subsets.items()]


def _measured(each: copydays.Copies, name: str, images: image_files.Joined,
              asking: np.ndarray, searched: np.ndarray,
              descriptors: np.ndarray, at: Any, settings: Settings,
              facts: Mapping[str, Any]) -> protocol.Measured:
  """Rows of the copies of a subset, in order.

  Raises:
    UserError: none of them, or none of the originals, can be read.
  """
  positive = each.original_of[asking][:, None] == searched[None]
  if not positive.any():
    raise errors.UserError(
        f'{each.spec} has no readable copy in {name} whose original can be '
        'read')
  cosine = retrieval.similarities(
      descriptors[at(asking)], descriptors[at(searched)])
  precision = copies.average_precision(cosine, positive, settings.top)
  pictures = {}
  if processes.is_first():
    pictures['ranking'] = ranking_picture.draw(images, [
        (int(asking[i]), [ranking_picture.Answer(
            int(searched[j]), bool(positive[i, j]), float(cosine[i, j]))
                          for j in np.argsort(-cosine[i], kind='stable')[
                              :ranking_picture.FIRST]])
        for i in ranking_picture.chosen(len(asking))])
  return protocol.Measured(
      f'{each.spec}, {name}', {'mAP': precision}, protocol.means, facts,
      pictures=pictures)
