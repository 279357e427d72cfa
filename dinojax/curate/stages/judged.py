"""Judges of images by a user, and the pixels that their faces leave.

Faces are blurred here, once: what is described, embedded and trained on later
is the blurred image.
"""

import io

from array_record.python import array_record_module
import numpy as np
from PIL import Image

from dinojax.core import atomic
from dinojax.curate import decoded
from dinojax.curate import plugins
from dinojax.curate import tables
from dinojax.curate.engines import work
from dinojax.curate.stages import pool_rows

JUDGED = pool_rows.JUDGED
_QUALITY = 95  # of JPEG


def write(place: work.Place, index: int, source: pool_rows.Images, *,
          nsfw: str, faces: str) -> work.Counts:
  """Asks the judges about the images of a shard.

  Args:
    place: place of the stage.
    index: shard.
    source: its images.
    nsfw, faces: judges, see plugins; '': none.
  """
  score = plugins.scorer(nsfw) if nsfw else lambda images: np.zeros(
      len(images))
  find = plugins.detector(faces) if faces else lambda images: [
      np.zeros((0, 4))] * len(images)
  rows, scores, counts, blurred = [], [], [], []
  path = place.file(JUDGED, index, pool_rows.BLURRED)
  with atomic.replacing(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
        str(temporary), 'group_size:1')
    for some, images in decoded.read(source):
      rows.append(source.rows[some])
      scores.append(score(images))
      for row, pixels, boxes in zip(
          source.rows[some].tolist(), images, find(images), strict=True):
        counts.append(len(boxes))
        if len(boxes):
          writer.write(_encoded(plugins.blurred(pixels, boxes)))
          blurred.append(row)
    writer.close()
  join = lambda parts, kind: (np.concatenate(parts) if parts
                              else np.zeros(0, kind))
  tables.write(place.file(JUDGED, index), {
      'row': join(rows, np.int64), 'nsfw': join(scores, np.float64),
      'faces': np.array(counts, np.int64)})
  tables.write(place.file(JUDGED, index, pool_rows.BLURRED_ROWS),
               {'row': np.array(blurred, np.int64)})
  return {'faces_blurred': sum(counts), 'images_blurred': len(blurred)}


def columns(place: work.Place, index: int, rows: range
            ) -> dict[str, np.ndarray]:
  """nsfw [r], −1 of rows that were not judged, and faces [r] of a shard."""
  table = tables.read(place.checked(JUDGED, index))
  nsfw, faces = np.full(len(rows), -1.0), np.zeros(len(rows), np.int64)
  at = table['row'] - rows.start
  nsfw[at], faces[at] = table['nsfw'], table['faces']
  return {'nsfw': nsfw, 'faces': faces}


def _encoded(pixels: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'JPEG', quality=_QUALITY, subsampling=0)
  return out.getvalue()
