"""The linear probe: what its classifiers see, and which are trained."""

from collections.abc import Callable, Mapping, Sequence
import itertools

import jax
import jax.numpy as jnp

from dinojax.engine import optimizer as optimizer_lib
from dinojax.engine import schedules

# The references' grid, before scaling by the batch.
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2,
                  2e-2, 5e-2, 1e-1)


def logits(features: jax.Array, kernel: jax.Array,
           bias: jax.Array) -> jax.Array:
  """[b, k] of features [b, e], kernel [e, k] and bias [k]."""
  return jnp.dot(features, kernel, precision='highest') + bias[None]


def grid(generation: str, batch_size: int,
         learning_rates: Sequence[float] = LEARNING_RATES,
         layers: Sequence[int] = (1, 4)) -> list[dict]:
  """The classifiers that are trained side by side.

  Args:
    generation: 'v2' trains with and without the mean patch, 'v3' only with
      it.
    batch_size: images of a step, on all devices together.
    learning_rates: for a batch of 256.
    layers: how many of the last blocks are joined, one after the other.

  Returns:
    num_layers, average_patches and lr of each.

  Source: setup_linear_classifiers of DINOv2 and DINOv3.
  """
  averages = {'v2': (False, True), 'v3': (True,)}[generation]
  return [dict(num_layers=n, average_patches=average,
               lr=rate * batch_size / 256)
          for n, average, rate in itertools.product(
              layers, averages, learning_rates)]


def optimizer(kind: str, momentum: float = 0.9) -> optimizer_lib.Optimizer:
  """The update rule of a probe: 'sgd' or 'adamw', without weight decay."""
  return {'sgd': lambda: optimizer_lib.sgd(beta1=momentum),
          'adamw': lambda: optimizer_lib.adamw(beta1=momentum)}[kind]()


def schedule(kind: str, total_steps: int
             ) -> Callable[[jax.Array], Mapping[str, jax.Array]]:
  """Factors of the learning rate by step, and beta1 where it moves.

  Args:
    kind: 'cosine_annealing', from 1 to 0; or 'one_cycle', up in three tenths
      of the steps, and down, while beta1 goes the other way.
    total_steps: length of training.

  Source: CosineAnnealingLR and OneCycleLR of PyTorch, as the references call
    them.
  """
  curves = {
      'cosine_annealing': {
          'lr': schedules.cosine(1.0, 0.0, total_steps=total_steps)},
      'one_cycle': {
          'lr': schedules.OneCycle(1 / 25, 1.0, 1 / 25e4, total_steps),
          'beta1': schedules.OneCycle(0.95, 0.85, 0.95, total_steps)}}[kind]
  return lambda step: {name: curve(step) for name, curve in curves.items()}


def name(classifier: dict) -> str:
  """'classifier_4_blocks_avgpool_True_lr_0_00100', as the references log."""
  lr = f'{classifier["lr"]:.5f}'.replace('.', '_')
  return (f'classifier_{classifier["num_layers"]}_blocks_avgpool_'
          f'{classifier["average_patches"]}_lr_{lr}')
