"""Accuracy by group of images, and which labels a group is given.

A classifier that is fitted to labelled images answers for images of groups,
such as incomes or regions. An answer is right when any of the best is among
the image's labels. An association is a set of classes, such as animals: the
score is how often a group is given one of them.

Source: the fairness analyses of DINOv2 (Dollar Street; Goyal et al. 2022).
Differs: logistic regression on the training images that are given, where the
  papers classify with ImageNet-22k.
"""

import dataclasses
from typing import Any

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import lists
from dinojax.core import paths
from dinojax.core import text
from dinojax.evals import protocol
from dinojax.evals import selection
from dinojax.evals.protocols import knn
from dinojax.evals.protocols import logistic
from dinojax.evals.sets import labels
from dinojax.features import spec
from dinojax.metrics import classification

TITLE = 'accuracy and labels by group of images'
COST = 'train, validation and groups once'
_WHAT = ('labels:FILE.csv with columns image, labels, and one for each kind of '
         'group')
_CLS = spec.FeatureSpec()


def open_groups(rest: str) -> labels.Several:
  """Opens labels:FILE whose images have groups.

  Raises:
    UserError: another scheme, or no column of groups; see labels.from_csv.
  """
  scheme, _, path = rest.partition(':')
  if scheme != 'labels':
    raise errors.UserError(f'{rest} has no groups: give {_WHAT}')
  source = labels.from_csv(path)
  if not source.groups:
    raise errors.UserError(
        f'{rest} has no column of groups beside image and labels: add one, '
        'such as region')
  return source


ROLES = {'train': protocol.Role('train'),
         'validation': protocol.Role('validation', needed=False),
         'groups': protocol.Role(opens=open_groups, what=_WHAT)}


@dataclasses.dataclass(frozen=True)
class Settings(logistic.Settings):
  """Accuracy and labels by group."""

  groups: str | None = None  # Images with labels and groups.
  top: fields.Positive = 5  # Best answers that count.
  # CSV file with columns class and association; None: associations are not
  # measured.
  associations: str | None = None
  # Least probability with which a class of an association is given.
  confidence: fields.Part = 0.1


def check(settings: Settings, config: Any):
  """Reads the associations before anything is measured.

  Raises:
    UserError: no such file, or other columns.
  """
  del config
  associations(settings.associations)


passes = logistic.passes


def associations(path: str | None) -> dict[str, set[str]]:
  """Classes of every association.

  Raises:
    UserError: no such file, or other columns.
  """
  out: dict[str, set[str]] = {}
  for line in lists.rows(epath.Path(paths.expand(path))) if path else ():
    if not {'class', 'association'} <= line.keys():
      raise errors.UserError(
          f'fairness.associations={path} has the columns {", ".join(line)}: '
          'it needs class and association')
    out.setdefault(line['association'], set()).add(line['class'])
  return out


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Any-match accuracy of all and of every group, and associations.

  Raises:
    UserError: no label of the groups' images is a class of training.
  """
  train, = job.sets['train']
  source, = job.sets['groups']
  wanted = _known(settings, train.classes)
  if not set(source.classes) & set(train.classes):
    raise errors.UserError(
        f'{source.spec} has no label that {train.spec} has as a class: labels '
        f'are compared by name, {text.listed(sorted(source.classes))} against '
        f'{text.listed(sorted(train.classes))}')
  images, validation = logistic.split(job, train)
  sweep = selection.choose(
      images, validation, len(train.classes), strengths=settings.strengths(),
      max_steps=settings.max_steps)
  rows = protocol.features(job, source, {'cls': _CLS}, knn.cls)
  chance = sweep.final.probabilities(rows['cls'])
  targets = source.targets_as(train.classes)[rows['index']]
  answers = classification.best(chance, settings.top)
  right = np.take_along_axis(targets == labels.PRESENT, answers, 1).any(1)
  columns = {'index': rows['index'], 'any match': np.where(
      (targets == labels.PRESENT).any(1), right, np.nan)}
  sure = np.take_along_axis(chance, answers, 1) >= settings.confidence
  for name, numbers in wanted.items():
    columns[f'given {name}'] = (
        np.isin(answers, numbers) & sure).any(1).astype(float)
  return [protocol.Measured(
      source.spec, columns | {
          f'group {kind}': column[rows['index']]
          for kind, column in source.groups.items()}, scores,
      sweep.facts(settings.strengths()) | {'top': settings.top})]


def scores(rows: protocol.Rows) -> dict[str, float]:
  """Means of all images and of every group, in per cent."""
  out = {}
  for name, values in rows.items():
    if name != 'any match' and not name.startswith('given '):
      continue
    if np.isfinite(values).any():
      out[name] = 100.0 * float(np.nanmean(values))
    for kind, groups in rows.items():
      if kind.startswith('group '):
        known = np.isfinite(values)
        out |= {f'{name}, {kind.removeprefix("group ")} {group}': 100.0 * mean
                for group, mean in classification.by_group(
                    values[known], groups[known]).items()}
  return out


def _known(settings: Settings, classes) -> dict[str, np.ndarray]:
  """Numbers of the classes of every association.

  Raises:
    UserError: training has no class of one.
  """
  out = {}
  for name, wanted in associations(settings.associations).items():
    out[name] = np.flatnonzero([each in wanted for each in classes])
    if not len(out[name]):
      raise errors.UserError(
          f'fairness.associations: no class of {name} is one of training '
          f'({text.listed(sorted(wanted))}): check their spelling')
  return out
