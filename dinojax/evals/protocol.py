"""Input and output of a protocol: rows of images, not sums.

A row holds what was measured of an image. Scores, intervals and files of
single predictions are functions of the rows in data order.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any, Protocol

from etils import epath
import numpy as np

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import classes
from dinojax.data import record as record_lib
from dinojax.evals.sets import images
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import rows as rows_lib
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.probes import head as head_lib

Rows = dict[str, np.ndarray]
_CHUNK = 16  # resamples that are drawn at a time


@dataclasses.dataclass(frozen=True)
class Data:
  """Labelled images of protocols that ask for no others of their own."""

  train: str | None = None  # Source that heads and neighbours are taken from.
  # Source by which heads are chosen; None: every tenth image of `train`.
  validation: str | None = None
  test: tuple[str, ...] = ()  # Sources that are measured on, each alone.
  # Length of the short side, in pixels; None: as the k-NN of the run that is
  # evaluated, else 256.
  resize_px: fields.Positive | None = None
  # Side of the square in the centre; None: the same way, else 224.
  crop_px: fields.Positive | None = None


class Set(Protocol):
  """A set that a protocol reads: a source of images, or one of evals.sets.

  A set may have `digest`, a text that differs where lengths do not.
  """

  spec: str

  def __len__(self) -> int:
    """Number of its items, which are images in most."""


@dataclasses.dataclass(frozen=True)
class Role:
  """A role of sets in a protocol; `settings.NAME` or `data` gives them.

  Attributes:
    data: field of the shared data that stands for it; None: there is none.
    needed: False: the protocol runs without.
    opens: makes a set of a spec.
    what: kind of set that is asked for, for messages.
  """

  data: str | None = None
  needed: bool = True
  opens: Callable[[str], Set] = images.open_source
  what: str = ('a source with labels, such as folder:DIR whose sub-folders are '
               'classes')


@dataclasses.dataclass(frozen=True)
class Nested:
  """A protocol within a run, which keeps nothing on disk.

  Attributes:
    stop: tells whether all processes stop now.
    programs: compiled programs of the protocol's heads for this backbone, by
      name, kept between evaluations.
    features: features of this evaluation by name, which protocols share.
    plan: gets the Fit of a protocol before the run begins: there are no
      weights yet, features are zeros, and the protocol ends there by Stopped;
      None: the run is under way.
  """

  stop: Callable[[], bool]
  programs: dict
  features: dict
  plan: Callable[[Any], None] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
  """Input of every protocol.

  Attributes:
    model: the backbone, on the devices that are used.
    sets: opened sets by role; of most roles one, () where none is given.
    sizes: sizes of the images.
    folder: where a protocol keeps what a later start needs; None: within a
      run, see `nested`.
    weights: digest of the model, see features.store.
    features: where features are kept for a later start, and for protocols
      that read the same; None: nowhere.
    reading: how images are read.
    say: gets sentences for the user.
    progress: gets the number of images that were read since the last call.
    nested: how it runs within a run; None: it does not.
    keys: keys of the config that give training and test images, for messages.
  """

  model: backbone_lib.Backbone
  sets: Mapping[str, tuple[Any, ...]]
  sizes: preprocessing.Preprocessing
  folder: epath.Path | None = None
  weights: str = ''
  features: epath.Path | None = None
  reading: stream.Reading = stream.AS_USUAL
  say: Callable[[str], None] = print
  progress: Callable[[int], None] = lambda count: None
  nested: Nested | None = None
  keys: tuple[str, str] = ('data.train', 'data.test')


@dataclasses.dataclass(frozen=True)
class Measured:
  """Rows of one test set.

  Attributes:
    test: spec of the set.
    rows: columns by name, [r, …] each, in the order of the source.
    score: rows to named scores in per cent, or in the unit of their name;
      `means`: the means of all columns.
    facts: more about the numbers, such as the head that was chosen.
    classes: names of the classes that rows number.
    pictures: [y, x, 3] uint8 by name, for people to look at.
    resamples: samples of the bootstrap; 0: scores have no interval.
    head: the head that was chosen, of those that can be used again.
  """

  test: str
  rows: Rows
  score: Callable[[Rows], dict[str, float]]
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  classes: Sequence[str] = ()
  pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  resamples: int = 1000
  head: head_lib.Head | None = None

  @property
  def num_rows(self) -> int:
    """Images, or queries, that were measured."""
    return len(next(iter(self.rows.values())))

  def scores(self) -> dict[str, float]:
    """The scores of all rows."""
    return self.score(self.rows)

  def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The middle 95 % of the scores of resampled rows, by name; {}: none.

    Source: the bootstrap's percentile interval.
    """
    rng, count = np.random.default_rng(seed), self.num_rows
    drawn = []
    while len(drawn) < self.resamples:
      for some in rng.integers(0, count, (_CHUNK, count)):
        drawn.append(self.score({k: v[some] for k, v in self.rows.items()}))
    return {name: tuple(float(x) for x in np.nanpercentile(
        [scores.get(name, np.nan) for scores in drawn], (2.5, 97.5)))
            for name in (self.scores() if drawn else ())}


def means(rows: Rows) -> dict[str, float]:
  """Means of columns of shares of one, in per cent; NaN does not count."""
  return {name: 100.0 * float(np.nanmean(column))
          for name, column in rows.items() if np.isfinite(column).any()}


def key(name: str, settings: Any, sizes: Mapping[str, Any]) -> str:
  """Digest of a protocol, its values, and its sets: what numbers share.

  Args:
    name: the protocol.
    settings: its section; fields that are free change no number.
    sizes: sources by role, with their numbers of images.
  """
  text = json.dumps([name, config_lib.flatten(settings, results_only=True),
                     sizes], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def labelled(source: record_lib.Source, name: str) -> record_lib.Source:
  """The source, which has classes.

  Args:
    source: the source.
    name: key of the config that gives it, for messages.

  Raises:
    UserError: it has no labels.
  """
  if not source.classes:
    raise errors.UserError(
        f'{name}={source.spec} has no labels: classes are sub-folders, or in '
        'the manifest.json beside records')
  return source


def features(job: Job, source: record_lib.Source,
             specs: Mapping[str, spec_lib.FeatureSpec],
             reduce: Callable[[dict], dict], *,
             may_be_none: bool = False) -> Rows:
  """Arrays of every readable image, with `index` and `label`.

  Args:
    job: model, and how images are read.
    source: records.
    specs: features by name.
    reduce: makes the arrays of what spec.compute gives, on the devices; see
      Backbone.run.
    may_be_none: it is no mistake if no image can be read.

  Raises:
    UserError: the backbone has no such features, or no image can be read.
  """
  def columns(batch: stream.Batch) -> Rows:
    stream.warn(batch.bad, source)
    return {name: np.asarray(array, np.float32)
            for name, array in batch.local().items()}

  extraction = rows_lib.Extraction(
      job.model, job.weights, source, specs, job.sizes, job.reading, reduce)
  if job.nested and job.nested.plan:
    return rows_lib.blank(extraction)
  kept = job.nested.features if job.nested else {}
  key = extraction.key() if job.nested else ''
  rows = kept.get(key)
  if rows is None:
    rows = kept[key] = rows_lib.table(
        extraction, columns, folder=job.features, progress=job.progress)
  if not (len(rows['index']) or may_be_none):
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read')
  return rows


def matched(job: Job, train: record_lib.Source, test: record_lib.Source
            ) -> classes.Matching:
  """The classes of test images, by name, as numbers of training.

  Raises:
    UserError: no class in common.
  """
  matching = classes.match(
      train, test, train_key=job.keys[0], test_key=job.keys[1])
  for note in matching.notes:
    job.say(note)
  return matching


def in_common(rows: Rows, labels: np.ndarray, name: str) -> Rows:
  """Rows whose class both sides have, with these labels.

  Raises:
    UserError: there is none.
  """
  known = labels != classes.UNKNOWN
  if not known.any():
    raise errors.UserError(
        f'no image of {name} has a label that training knows: check its '
        'sub-folders')
  return {key: value[known] for key, value in (rows | {
      'label': labels}).items()}


def classified(test: record_lib.Source, index: np.ndarray,
               answers: np.ndarray, labels: np.ndarray,
               classes_: Sequence[str],
               facts: Mapping[str, Any]) -> Measured:
  """Accuracies of answers to images of one class each.

  Args:
    test: the source.
    index: [r] numbers of the images in it.
    answers: [r, n] classes, the best first.
    labels: [r] the right class.
    classes_: names of the classes.
    facts: see Measured.
  """
  right = answers == labels[:, None]
  rows = {'index': index, 'label': labels, 'prediction': answers[:, 0]} | {
      f'top-{top}': right[:, :top].any(1).astype(float)
      for top in tops(len(classes_))}
  return Measured(test.spec, rows, _accuracies, facts,
                  classes=tuple(classes_))


def _accuracies(rows: Rows) -> dict[str, float]:
  """Accuracies in per cent; every class that occurs weighs the same in one."""
  out = means({name: column for name, column in rows.items()
               if name.startswith('top-')})
  count = np.bincount(rows['label'])
  right = np.bincount(rows['label'], rows['top-1'])
  return out | {'mean per class': 100.0 * float(
      np.mean(right[count > 0] / count[count > 0]))}


def tops(num_classes: int) -> Sequence[int]:
  """Answers that count: the first, and five where there are more classes.

  Differs: the references count five of five, which is always 100 %.
  """
  return (1, 5) if num_classes > 5 else (1,)
