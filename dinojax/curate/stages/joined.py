"""Components of a stage that joins rows: labels, and one that stays of each."""

import os

import numpy as np

from dinojax.curate import copies
from dinojax.curate import verdicts
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import pool_rows

JOIN = 'join'  # phase with one task
_LABEL, _KEPT = 'label.npy', 'kept.npy'


def keep(stage: base.Stage, place: work.Place, label: np.ndarray, *,
         largest: bool) -> work.Counts:
  """Writes labels and which rows stay.

  Args:
    stage: the stage.
    place: its place.
    label: [rows] smallest row of the component of every row.
    largest: True: the image of the most pixels stays, else the first row.
  """
  sizes = np.bincount(label, minlength=len(label))
  quality = pool_rows.areas(
      stage.input(place, 'pool'), sizes[label] > 1) if largest else None
  np.save(place.file(JOIN, 0, _LABEL), label)
  np.save(place.file(JOIN, 0, _KEPT), copies.kept(label, quality))
  return {'components_of_several': int((sizes > 1).sum()),
          'largest_component': int(sizes.max())}


def has(place: work.Place) -> bool:
  """Tells whether a stage has joined rows."""
  return os.path.exists(place.file(JOIN, 0, _LABEL))


def labels(place: work.Place) -> np.ndarray:
  """[rows] labels that `keep` wrote, mapped from the disk."""
  return np.load(place.checked(JOIN, 0, _LABEL), mmap_mode='r')


def kept(place: work.Place) -> np.ndarray:
  """[rows] bool: rows that stay, mapped from the disk."""
  return np.load(place.checked(JOIN, 0, _KEPT), mmap_mode='r')


def judge(stage: base.Stage, place: work.Place, index: int) -> work.Counts:
  """Writes verdicts of a shard: what does not stay is a copy.

  Args:
    stage: the stage.
    place: its place.
    index: shard.
  """
  rows = stage.shard_rows(place)[index]
  label = np.array(labels(place)[rows.start:rows.stop])
  reasons = ['' if stays else f'copy: component of row {number}'
             for stays, number in zip(
                 kept(place)[rows.start:rows.stop].tolist(), label.tolist(),
                 strict=True)]
  return verdicts.write(
      place, index, rows, stage.alive(place, index), reasons, label=label)
