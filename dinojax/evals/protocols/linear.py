"""The linear probe: classifiers of several inputs and rates, side by side.

Which of them is reported is chosen on validation images; the same one is then
measured on the test images. Training reads features that are computed once,
without augmentation, and the result says so.

Source: linear evaluation of DINOv2 (52 heads) and DINOv3 (13).
Differs: no random crops; without validation images of their own, every tenth
  training image chooses, where the references choose on the test images.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import classes
from dinojax.data import mixture
from dinojax.data import parts
from dinojax.engine import loop
from dinojax.engine import report
from dinojax.evals import linear
from dinojax.evals import protocol
from dinojax.features import spec as spec_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import classify

TITLE = 'linear classifiers on CLS and the mean patch'
COST = 'train and test once'
ROLES = {'train': protocol.Role('train'),
         'validation': protocol.Role('validation', needed=False),
         'test': protocol.Role('test')}
_BLOCK = 4096  # rows that are scored at a time
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Settings:
  """Linear probe on cached features."""

  # Numbers of last blocks that are joined, one input after another.
  layers: tuple[fields.Positive, ...] = (1, 4)
  # For each, without and with the mean patch of the last block.
  averages: tuple[bool, ...] = (False, True)
  # Learning rates at a batch of 256; they grow with the batch.
  learning_rates: tuple[fields.Above0, ...] = linear.LEARNING_RATES
  optimizer: Literal['sgd', 'adamw'] = 'sgd'  # Update rule, no weight decay.
  # Learning rate over time.
  schedule: Literal['cosine_annealing', 'one_cycle'] = 'cosine_annealing'
  batch_size: fields.Positive = 1024  # Images of a step.
  epochs: fields.Above0 = 10.0  # Passes over the training images, …
  min_steps: fields.Positive = 500  # … but at least so many steps.


@dataclasses.dataclass(frozen=True)
class Stored:
  """Features of several choices as arrays that are stored once.

  Attributes:
    choices: (name, features) of each.
    depth: layers of the backbone.
  """

  choices: tuple[tuple[str, spec_lib.FeatureSpec], ...]
  depth: int

  def __call__(self, outputs: dict) -> dict:
    return task_lib.stored_features(
        dict(self.choices), outputs, self.depth, of_last=('mean',))


def check(settings: Settings, config: Any):
  """Refuses more layers than a backbone has.

  Raises:
    UserError: it has fewer.
  """
  wrong = [n for n in settings.layers if not 1 <= n <= config.depth]
  if wrong or not settings.layers:
    fits = [n for n in settings.layers if 1 <= n <= config.depth] or [1]
    raise errors.UserError(
        f'linear.layers={settings.layers} are not in this model of '
        f'{config.depth} layers: set linear.layers={tuple(fits)}')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sum(sizes.values())


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of the classifier that is best on validation images.

  Raises:
    UserError: sources without labels or without a class in common.
    Stopped: a signal ended the training of the heads, whose step is saved.
  """
  train, validation, tests = _sources(job)
  task = classify.Classify(
      len(train.classes), tuple(n for n in settings.layers),
      settings.averages)
  stored = Stored(tuple(task.choices.items()), job.model.config.depth)
  tables = []
  for source in (train, validation, *tests):
    rows = protocol.features(job, source, dict(task.choices), stored)
    matching = (classes.Matching(np.arange(len(train.classes)), ())
                if source is train else
                protocol.matched(train, source, job.say))
    tables.append(protocol.in_common(
        rows, matching.of_test(rows['label']), source.spec))
  heads, rates = _train(job, settings, task, tables[0])
  names = [name for name in task.choices]
  choose = _hits(task, heads, tables[1], job.model.config.depth, (1,))[0]
  right = choose.mean(0) - 2.0 * np.concatenate(
      [heads[name]['diverged'] for name in names])  # ranked last
  best = int(right.argmax())
  choice, place = names[best // len(rates)], best % len(rates)
  chosen = {choice: {name: value[place:place + 1]
                     for name, value in heads[choice].items()}}
  tops = protocol.tops(len(train.classes))
  facts = {'input': choice, 'lr': rates[place], 'augmentation': 'none',
           'validation top-1': 100.0 * float(choose.mean(0)[best]),
           'heads': len(names) * len(rates)}
  out = []
  for test, table in zip(tests, tables[2:], strict=True):
    hits = _hits(task, chosen, table, job.model.config.depth, tops)
    rows = {f'top-{top}': hit[:, 0].astype(float)
            for top, hit in zip(tops, hits, strict=True)}
    out.append(protocol.Measured(test.spec, rows, protocol.means, facts))
  return out


def _sources(job: protocol.Job) -> tuple:
  """Training and validation images, and the sets that are measured."""
  train, = job.sets['train']
  protocol.labelled(train, 'data.train')
  tests = [protocol.labelled(test, 'data.test') for test in job.sets['test']]
  if job.sets['validation']:
    validation, = job.sets['validation']
    return train, protocol.labelled(validation, 'data.validation'), tests
  return (*(parts.Part(part, train) for part in parts.PARTS), tests)


def _train(job: protocol.Job, settings: Settings, task: classify.Classify,
           table: protocol.Rows) -> tuple[dict, tuple[float, ...]]:
  """The trained heads on the host by choice, and their rates."""
  mesh = job.model.mesh
  count = len(table['label'])
  # The batch is the same on any mesh, whose devices get padding beside it.
  batch = min(settings.batch_size, count)
  rows = -(-batch // mesh.size) * mesh.size
  steps = max(round(settings.epochs * count / batch), settings.min_steps)
  rates = tuple(rate * batch / 256 for rate in settings.learning_rates)
  arrays = {name: value for name, value in table.items() if '/' in name}
  shapes = {
      fit_lib.FEATURES: {name: fit_lib.rows(mesh, jnp.float32, rows,
                                            *value.shape[1:])
                         for name, value in arrays.items()},
      'target': fit_lib.rows(mesh, jnp.int32, rows),
      'weight': fit_lib.rows(mesh, jnp.float32, rows),
      'bad': fit_lib.rows(mesh, jnp.bool_, rows)}
  with mesh_lib.activate(mesh):
    result = loop.run(loop.Job(
        trainable=fit_lib.Fit(
            task, job.model, shapes, sweep=fit_lib.Sweep(rates),
            rule=linear.optimizer(settings.optimizer),
            schedule=linear.schedule(settings.schedule, steps)),
        mesh=mesh, workdir=job.folder, seed=_SEED, total_steps=steps,
        checkpoint_steps=max(steps // 4, 1), keep=1,
        batches=functools.partial(
            _batches, arrays, table['label'], batch, rows),
        log=report.Options(batch_size=batch, every_steps=max(steps // 10, 1)),
        info={}))
  if not result.finished:
    raise errors.Stopped  # its step is saved; the same command goes on
  return {name: jax.device_get(head['params']) | {
      'diverged': np.asarray(head['counters']['in_row']) > 0}
          for name, head in result.state['heads'].items()}, rates


def _batches(arrays: Mapping[str, np.ndarray], labels: np.ndarray, batch: int,
             rows: int, step: int) -> Iterator[dict]:
  """This process's rows of every batch from a step on.

  Rows from `batch` to `rows` are padding, copies of the last image.
  """
  share = rows // jax.process_count()
  row = jax.process_index() * share + np.arange(share)
  weight = (row < batch).astype(np.float32)
  while True:
    epoch, place = np.divmod(
        step * batch + np.minimum(row, batch - 1), len(labels))
    index = np.concatenate([
        _order(len(labels), int(e))[place[epoch == e]]
        for e in np.unique(epoch)])
    yield {fit_lib.FEATURES: {name: value[index]
                              for name, value in arrays.items()},
           'target': labels[index].astype(np.int32),
           'weight': weight, 'bad': np.zeros(share, bool)}
    step += 1


@functools.lru_cache(maxsize=2)
def _order(count: int, epoch: int) -> np.ndarray:
  """The order of an epoch, in which every image is read once."""
  return mixture.generator(_SEED, 1, epoch).permutation(count)


def _hits(task: classify.Classify, heads: Mapping[str, dict],
          table: protocol.Rows, depth: int,
          tops: tuple[int, ...]) -> list[np.ndarray]:
  """[r, s] whether the label is among the best, for each of `tops`."""
  parts = []
  for start in range(0, len(table['label']), _BLOCK):
    block = {name: value[start:start + _BLOCK]
             for name, value in table.items()}
    logits = np.concatenate([np.asarray(_logits(
        task, choice, depth, head, block))
                             for choice, head in heads.items()])  # [s, b, k]
    best = np.argsort(-logits, axis=-1, kind='stable')[..., :max(tops)]
    right = best == block['label'][None, :, None]
    parts.append([right[..., :top].any(-1).T for top in tops])
  return [np.concatenate(hits) for hits in zip(*parts, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(task, choice, depth, heads, block):
  """[s, b, k] logits of a stack of heads."""
  features = task_lib.read_features(block, task.choices[choice], depth)
  return jax.vmap(lambda params: task.outputs(
      {'params': params, 'stats': {}}, features, {}, None)[0])(heads)
