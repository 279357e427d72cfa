"""Protocols by name while a run trains, see `evals` of its config.

They read the images of k-NN (knn.train, knn.validation), at its sizes, at
evaluations of the run. Heads are trained within: without a folder, and without
a line for each step. When the run is to stop, they are dropped, and repeated
when it goes on.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import logging
from typing import Any

import jax

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.data import parts
from dinojax.data import record as record_lib
from dinojax.data import sources
from dinojax.evals import online
from dinojax.evals import protocol
from dinojax.evals import registry
from dinojax.features import backbone as backbone_lib
from dinojax.features import preprocessing
from dinojax.features import stream
from dinojax.parallel import processes
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib

Evaluator = Callable[
    [int, Mapping[str, dict], Callable[[], bool]], dict[str, float]]


def read(config: Mapping[str, Any]) -> dict[str, Any]:
  """The sections of `evals` by protocol, with `every` and their own values.

  Raises:
    UserError: protocols or keys that are not known, all at once.
  """
  problems, out = config_lib.Errors(), {}
  for name, values in config.items():
    if name not in registry.PROTOCOLS:
      near = difflib.get_close_matches(name, registry.PROTOCOLS, 1, 0.5)
      problems.add(f'evals.{name} is no protocol: ' + (
          f'did you mean {near[0]}?' if near else
          f'use some of {", ".join(registry.PROTOCOLS)}'))
      continue
    if values is None or not isinstance(values, Mapping):
      problems.add(f'evals.{name}={config_lib.shown(values)} is not a section: '
                   f'give evals.{name}.every_steps, or an empty one')
      continue
    out[name] = config_lib.section(
        kind(name), values, path=f'evals.{name}', problems=problems)
  problems.raise_any()
  return out


def kind(name: str) -> type:
  """The settings of a protocol, with the time between two.

  `every` is a multiple of knn.every; None: at every evaluation.
  """
  theirs = registry.PROTOCOLS[name].Settings
  return dataclasses.make_dataclass(
      'Chosen', [('every', config_lib.Duration | None, None)],
      bases=(theirs,), frozen=True, namespace={'__doc__': theirs.__doc__})


def make(method: method_lib.Method, mesh: jax.sharding.Mesh,
         steps: Callable[[Any], int | None], total: int) -> Evaluator | None:
  """The evaluator of a run; None: it has nothing to measure.

  Args:
    method: networks and settings of the run.
    mesh: the devices.
    steps: a duration in steps; None of None.
    total: the last step, at which everything is measured.

  Returns:
    (step, EMA by student, whether to stop) to PROTOCOL/SCORE.

  Raises:
    UserError: see `read`; sets that are not given; a time that no evaluation
      of the run falls on.
  """
  settings = method.settings
  chosen = read(settings.evals)
  if not chosen:
    return None
  sets = {name: _sets(name, section, settings)
          for name, section in chosen.items()}
  between = steps(settings.knn.every)
  every = {name: steps(section.every) for name, section in chosen.items()}
  for name, count in every.items():
    if count and (not between or count % between):
      raise errors.UserError(
          f'evals.{name}.every is {count} steps, and the run evaluates every '
          f'{between} (knn.every): set it to a multiple, or leave it out')
  for name in [name for name, given in sets.items() if given is None]:
    del chosen[name]  # a default, whose labels are not there
  for name, section in chosen.items():
    for student in method.each.values():
      registry.PROTOCOLS[name].check(
          section, student.student.config.backbone)
  # Programs of a student's heads are of its network, and of nobody else's.
  programs = {(student, name): {}
              for student in method.each for name in chosen}

  def evaluate(step, emas, stop):
    scores = {}
    for name, student in method.each.items():
      prefix = '' if name == sections.ALONE else f'{name}/'
      job, features = _job(student, mesh, emas[name]), {}
      for protocol_name, section in chosen.items():
        if step % (every[protocol_name] or 1) and step != total:
          continue
        first, *_ = registry.PROTOCOLS[protocol_name].run(dataclasses.replace(
            job, sets=sets[protocol_name], nested=protocol.Nested(
                stop, programs[name, protocol_name], features)), section)
        scores |= {f'{prefix}{protocol_name}/{metric}': value
                   for metric, value in first.scores().items()}
    return scores

  return evaluate


def _sets(name: str, section: Any, settings: settings_lib.Settings
          ) -> dict[str, tuple] | None:
  """The sets of a protocol by role; None: a run without labelled images.

  Raises:
    UserError: a set that k-NN's images cannot stand for is not given.
  """
  plan, data = settings.knn, settings.data
  shared = {
      'train': (plan.train or data.mixture[0][0], plan.max_train_images),
      'test': (plan.validation or data.validation,
               plan.max_validation_images)}
  out = {}
  for role, wanted in registry.PROTOCOLS[name].ROLES.items():
    spec = getattr(section, role, None)
    if spec:
      out[role] = tuple(wanted.opens(each) for each in (
          (spec,) if isinstance(spec, str) else spec))
      continue
    spec, limit = shared.get(wanted.data or '', (None, 0))
    if spec:
      source = sources.open_source(spec)
      if not source.classes and wanted.what == protocol.Role().what:
        return None
      out[role] = (_limited(source, limit),)
    elif not wanted.needed:
      out[role] = ()
    elif wanted.data:
      return None
    else:
      raise errors.UserError(
          f'evals.{name}.{role} is missing: give {wanted.what}')
  return out


def _limited(source: record_lib.Source, limit: int) -> record_lib.Source:
  """At most so many records, evenly over a source."""
  if len(source) <= limit:
    return source
  return parts.Chosen(source, online.evenly(len(source), limit))


def _job(method: method_lib.Method, mesh: jax.sharding.Mesh,
         ema: dict) -> protocol.Job:
  """The input of protocols for one student."""
  s = method.settings
  model = backbone_lib.Backbone(
      method.student.config.backbone, ema['backbone'], mesh,
      mean=s.augment.mean, std=s.augment.std)
  return protocol.Job(
      model, {}, preprocessing.Preprocessing(s.knn.resize_px, s.knn.crop_px),
      reading=stream.Reading(
          s.knn.batch_size, s.data.num_threads, max_pixels=s.data.max_pixels,
          value_range=tuple(s.data.value_range)),
      say=logging.warning if processes.is_first() else lambda _: None)
