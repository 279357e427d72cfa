"""Fine-tuning for classification: a linear layer, and the backbone with it.

Source: DINOv2's check that features are good for training further; neither
  paper gives its recipe.
Differs: the recipe is the usual one for ViTs: AdamW, rates that fall towards
  the first blocks, drop path, label smoothing; and no mixing of images.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from dinojax.core import fields
from dinojax.core import tree
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import linear_probe
from dinojax.evals import protocol
from dinojax.evals import training
from dinojax.features import backbone as backbone_lib
from dinojax.features import store
from dinojax.metrics import classification
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import finetuning
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import classify

TITLE = 'accuracy after training the backbone further, with a linear layer'
COST = 'train twenty times or 500 steps, forward and backward; test once'
TRAINS = True  # heads
ROLES = {'train': protocol.Role('train'), 'test': protocol.Role('test')}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Fine-tuning for classification."""

  lr: fields.Above0 = 1e-4  # Learning rate at a batch of 256, at its highest.
  weight_decay: fields.NonNegative = 0.05  # Weight decay, not of norms.
  # Factor of the rate from each block to the one before it.
  layerwise_decay: fields.Part = 0.75
  drop_path_rate: fields.BelowOne = 0.1  # Share of rows that skip a block.
  label_smoothing: fields.BelowOne = 0.1  # Share of a target all classes get.
  # Regular expression of whole paths of parameters that are trained.
  trainable: str = '.*'
  first_layer: fields.Natural = 0  # Blocks before it keep their weights.
  batch_size: fields.Positive = 256  # Images of a step.
  # Images among which skipped rows are counted.
  group_images: fields.Positive = 8
  epochs: fields.Above0 = 20.0  # Passes over the training images, …
  min_steps: fields.Positive = 500  # … but at least so many steps.
  warmup: fields.Unit = 0.1  # Part of the steps until the rate is highest.
  clip_norm: fields.Above0 = 1.0  # Norm of gradients, backbone and head each.
  # Least and greatest area of a random crop, as parts of the image.
  crop_scale: tuple[fields.Part, fields.Part] = (0.08, 1.0)

  def batch(self, count: int) -> int:
    """Images of a step, of so many images."""
    return min(self.batch_size, count)

  def steps(self, count: int) -> int:
    """Length of training on so many images."""
    return max(round(self.epochs * count / self.batch(count)), self.min_steps)


def check(settings: Settings, config: Any):
  """Every backbone can be trained further."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  train = sizes['train']
  return settings.steps(train) * settings.batch(train) + sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of the backbone and its linear layer after the last step.

  Raises:
    UserError: sources without labels or without a class in common.
    Stopped: a signal ended the training, whose step is saved.
  """
  train, = job.sets['train']
  protocol.labelled(train, 'data.train')
  tests = [(test, protocol.matched(
      job, train, protocol.labelled(test, 'data.test')))
           for test in job.sets['test']]
  classifier = _trained(job, settings, train)
  out = []
  for test, matching in tests:
    rows = classifier.logits(test)
    rows = protocol.in_common(
        rows, matching.of_test(rows['label']), test.spec)
    out.append(protocol.classified(
        test, rows['index'], classification.best(rows['logits'], 5),
        rows['label'], classifier.classes, classifier.facts))
  return out


def _trained(job: protocol.Job, settings: Settings,
             train: Any) -> linear_probe.Classifier:
  """The linear layer, on the backbone that was trained with it."""
  task = classify.Classify(
      len(train.classes), (1,), (True,),
      label_smoothing=settings.label_smoothing)
  batches = training.from_images(
      job, train, linear_probe.Cropped(
          job.sizes.crop_px, settings.crop_scale, job.reading.max_pixels,
          tuple(job.reading.value_range or job.model.value_range)),
      settings.batch(len(train)), group_images=settings.group_images)
  steps = settings.steps(len(train))
  part = finetuning.Trained(
      settings.trainable, settings.first_layer, settings.layerwise_decay,
      settings.drop_path_rate, settings.group_images)
  curve = schedules.cosine(
      1.0, 0.0, total_steps=steps,
      warmup_steps=round(settings.warmup * steps))
  fit = fit_lib.Fit(
      task, job.model, batches.shapes, rule=optimizer.adamw(),
      sweep=fit_lib.Sweep((settings.lr * batches.num_images / 256,),
                          settings.weight_decay),
      schedule=lambda step: {'lr': curve(step)},
      clip_norm=settings.clip_norm, trainable=part)
  state = training.train(job, fit, batches, steps)
  choice, = task.choices
  params = dict(state['heads'][choice]['params'])
  backbone = _placed(job.model, part, params.pop(finetuning.BACKBONE))
  tuned = dataclasses.replace(job, model=backbone, weights=store.digest(
      backbone.config, backbone.params))
  return linear_probe.Classifier(
      tuned, task, choice, jax.tree.map(np.asarray, jax.device_get(params)),
      tuple(train.classes),
      {'augmentation': 'random crops', 'steps': steps,
       'trained': tree.num_elements(backbone.params) - tree.num_elements(
           part.divide(job.model.params)[1])})


def _placed(model: backbone_lib.Backbone, part: finetuning.Trained,
            stack: tree.Tree) -> backbone_lib.Backbone:
  """The backbone with the weights that were trained, a stack of one."""
  _, frozen = part.divide(model.params)
  with mesh_lib.activate(model.mesh):
    trained = jax.jit(lambda stack: jax.tree.map(lambda x: x[0], stack))(stack)
  return backbone_lib.Backbone(
      model.config, tree.join(frozen, trained), model.mesh, mean=model.mean,
      std=model.std, value_range=model.value_range,
      source=f'{model.source}, trained further', family=model.family)
