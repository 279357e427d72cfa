"""Training of a linear probe, and the choice of its best classifier.

Classifiers of several inputs and rates learn side by side, from random crops,
or from features that are computed once. The best on validation images is then
applied to any images.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.data import crops
from dinojax.data import examples
from dinojax.data import images
from dinojax.data import parts
from dinojax.data import record as record_lib
from dinojax.evals import linear
from dinojax.evals import protocol
from dinojax.evals import training
from dinojax.features import spec as spec_lib
from dinojax.probes import fit as fit_lib
from dinojax.probes import task as task_lib
from dinojax.probes.tasks import classify

_BLOCK = 4096  # rows that are scored at a time
_LAYERS = (1, 4)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Linear probe: classifiers on CLS and the mean patch."""

  # Numbers of last blocks that are joined, one input after another; (): 1 and
  # 4, where a model has so many.
  layers: tuple[fields.Positive, ...] = ()
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
  # True: features are computed once, without random crops: less accurate, and
  # much faster.
  cached: bool = False
  # Least and greatest area of a random crop, as parts of the image.
  crop_scale: tuple[fields.Part, fields.Part] = (0.08, 1.0)

  def inputs(self, depth: int) -> tuple[int, ...]:
    """Numbers of last blocks that are joined, of a model of `depth`."""
    return self.layers or tuple(n for n in _LAYERS if n <= depth)

  def batch(self, count: int) -> int:
    """Images of a step, of so many images."""
    return min(self.batch_size, count)

  def steps(self, count: int) -> int:
    """Length of training on so many images."""
    return max(round(self.epochs * count / self.batch(count)), self.min_steps)


@dataclasses.dataclass(frozen=True)
class Cropped:
  """Makes a training image: a random crop, mirrored or not, and its class."""

  crop_px: int
  scale: tuple[float, float]
  max_pixels: int
  value_range: tuple[float, ...]

  def __call__(self, record: record_lib.Record,
               rng: np.random.Generator) -> dict[str, np.ndarray]:
    image = images.open_image(record.image, max_pixels=self.max_pixels,
                              value_range=self.value_range)
    cut, = crops.multi_crop(image, rng, crops.Crops(
        global_px=self.crop_px, global_scale=self.scale, num_global=1,
        num_local=0))['global']
    return {'image': cut, 'target': np.int32(record.label)}


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


@dataclasses.dataclass(frozen=True)
class Classifier:
  """The best classifier, ready for images.

  Attributes:
    job: model, and how images are read.
    task: the task that the classifiers learned.
    choice: features that it sees.
    params: its weights, in a stack of one.
    classes: names of the classes, by number.
    facts: how it was made and chosen.
  """

  job: protocol.Job
  task: classify.Classify
  choice: str
  params: dict[str, np.ndarray]
  classes: tuple[str, ...]
  facts: Mapping[str, Any]

  def logits(self, source: record_lib.Source) -> protocol.Rows:
    """`logits` [r, k] of every readable image, with `index` and `label`."""
    rows = features(self.job, self.task, source)
    blocks = [np.asarray(_logits(
        self.task, self.choice, self.job.model.config.depth, self.params,
        _block(rows, start))[0])
              for start in range(0, len(rows['index']), _BLOCK)]
    return {'index': rows['index'], 'label': rows['label'],
            'logits': np.concatenate(blocks)}


def check(settings: Settings, config: Any):
  """Refuses more layers than a backbone has.

  Raises:
    UserError: it has fewer.
  """
  if any(not 1 <= n <= config.depth for n in settings.layers):
    fits = [n for n in settings.layers if 1 <= n <= config.depth] or [1]
    raise errors.UserError(
        f'linear.layers={settings.layers} are not in this model of '
        f'{config.depth} layers: set linear.layers={tuple(fits)}')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  train = sizes['train']
  if not sizes['validation']:  # a tenth of the training images
    train -= train // 10
  if settings.cached:
    return sum(sizes.values())
  return (settings.steps(train) * settings.batch(train)
          + sum(sizes.values()) - train)


def divided(train: record_lib.Source,
            validation: Sequence[record_lib.Source]) -> tuple:
  """Training and validation images: every tenth, where none are given."""
  if validation:
    return train, protocol.labelled(validation[0], 'data.validation')
  return tuple(parts.Part(part, train) for part in parts.PARTS)


def features(job: protocol.Job, task: classify.Classify,
             source: record_lib.Source) -> protocol.Rows:
  """Stored features of every readable image, with `index` and `label`."""
  stored = Stored(tuple(task.choices.items()), job.model.config.depth)
  return protocol.features(job, source, dict(task.choices), stored)


def trained(job: protocol.Job, settings: Settings,
            train: record_lib.Source,
            validation: Sequence[record_lib.Source]) -> Classifier:
  """Trains the classifiers, and chooses one on validation images.

  Args:
    job: model, and how images are read.
    settings: see Settings.
    train: labelled images.
    validation: at most one source; (): every tenth of `train`.

  Raises:
    UserError: sources without labels or without a class in common.
    Stopped: a signal ended the training, whose step is saved.
  """
  protocol.labelled(train, 'data.train')
  classes = tuple(train.classes)
  train, held_out = divided(train, validation)
  matching = protocol.matched(job, train, held_out)
  task = classify.Classify(
      len(classes), settings.inputs(job.model.config.depth), settings.averages)
  heads, rates = _train(job, settings, task, train)
  rows = features(job, task, held_out)
  rows = protocol.in_common(
      rows, matching.of_test(rows['label']), held_out.spec)
  right = _right(task, heads, rows, job.model.config.depth)
  names = list(task.choices)
  diverged = np.concatenate([heads[name]['diverged'] for name in names])
  best = int((right - 2.0 * diverged).argmax())  # diverged ones rank last
  choice, place = names[best // len(rates)], best % len(rates)
  return Classifier(
      job, task, choice, {name: value[place:place + 1]
                          for name, value in heads[choice].items()
                          if name != 'diverged'}, classes,
      {'input': choice, 'lr': rates[place],
       'augmentation': 'none' if settings.cached else 'random crops',
       'validation top-1': 100.0 * float(right[best]),
       'heads': len(names) * len(rates)})


def _train(job: protocol.Job, settings: Settings, task: classify.Classify,
           train: record_lib.Source) -> tuple[dict, tuple[float, ...]]:
  """The trained heads on the host by choice, and their rates."""
  batches = (_stored_batches if settings.cached else _image_batches)(
      job, settings, task, train)
  steps = settings.steps(len(train))
  rates = tuple(rate * batches.num_images / 256
                for rate in settings.learning_rates)
  fit = fit_lib.Fit(
      task, job.model, batches.shapes, sweep=fit_lib.Sweep(rates),
      rule=linear.optimizer(settings.optimizer),
      schedule=linear.schedule(settings.schedule, steps))
  state = training.train(job, fit, batches, steps)
  return {name: jax.device_get(head['params']) | {
      'diverged': np.asarray(head['counters']['in_row']) > 0}
          for name, head in state['heads'].items()}, rates


def _image_batches(job: protocol.Job, settings: Settings,
                   task: classify.Classify,
                   train: record_lib.Source) -> training.Batches:
  """Random crops of the training images."""
  del task
  return training.from_images(
      job, train, Cropped(
          job.sizes.crop_px, settings.crop_scale, job.reading.max_pixels,
          tuple(job.reading.value_range or job.model.value_range)),
      settings.batch(len(train)))


def _stored_batches(job: protocol.Job, settings: Settings,
                    task: classify.Classify,
                    train: record_lib.Source) -> training.Batches:
  """Features that are computed once."""
  table, mesh = features(job, task, train), job.model.mesh
  table = protocol.in_common(table, table['label'], train.spec)
  arrays = {name: value for name, value in table.items() if '/' in name}
  count = settings.batch(len(table['label']))
  rows = training.padded(count, mesh)
  shapes = {
      fit_lib.FEATURES: {name: fit_lib.rows(mesh, jnp.float32, rows,
                                            *value.shape[1:])
                         for name, value in arrays.items()},
      'target': fit_lib.rows(mesh, jnp.int32, rows),
      'weight': fit_lib.rows(mesh, jnp.float32, rows),
      'bad': fit_lib.rows(mesh, jnp.bool_, rows)}
  return training.Batches(shapes, functools.partial(
      stored_rows, arrays, table['label'], count, rows), count)


def stored_rows(arrays: Mapping[str, np.ndarray], labels: np.ndarray,
                num_images: int, rows: int, step: int) -> Iterator[dict]:
  """This process's rows of every batch of stored features from a step on.

  Rows from `num_images` to `rows` are padding, copies of the last image.
  """
  share = rows // jax.process_count()
  row = jax.process_index() * share + np.arange(share)
  weight = (row < num_images).astype(np.float32)
  while True:
    epoch, place = np.divmod(
        step * num_images + np.minimum(row, num_images - 1), len(labels))
    index = np.concatenate([
        examples.order(len(labels), training.SEED, int(e))[place[epoch == e]]
        for e in np.unique(epoch)])
    yield {fit_lib.FEATURES: {name: value[index]
                              for name, value in arrays.items()},
           'target': labels[index].astype(np.int32),
           'weight': weight, 'bad': np.zeros(share, bool)}
    step += 1


def _right(task: classify.Classify, heads: Mapping[str, dict],
           table: protocol.Rows, depth: int) -> np.ndarray:
  """[s] share of the rows that each classifier of all choices gets right."""
  total = 0
  for start in range(0, len(table['label']), _BLOCK):
    block = _block(table, start)
    logits = np.concatenate([np.asarray(_logits(
        task, choice, depth, {k: v for k, v in head.items()
                              if k != 'diverged'}, block))
                             for choice, head in heads.items()])  # [s, b, k]
    total = total + (logits.argmax(-1) == table['label'][
        None, start:start + _BLOCK]).sum(1)
  return total / len(table['label'])


def _block(table: protocol.Rows, start: int) -> dict[str, np.ndarray]:
  """Features of some rows."""
  return {name: value[start:start + _BLOCK]
          for name, value in table.items() if '/' in name}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(task, choice, depth, heads, block):
  """[s, b, k] logits of a stack of heads."""
  features = task_lib.read_features(block, task.choices[choice], depth)
  return jax.vmap(lambda params: task.outputs(
      {'params': params, 'stats': {}}, features, {}, None)[0])(heads)
