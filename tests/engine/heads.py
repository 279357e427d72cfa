"""Heads on a frozen backbone, as a Trainable that is nothing like DINO.

Two widths of features, three learning rates of which one diverges, batch
statistics, a frozen part, and an average that begins at a step.
"""

import sys
import time

from absl import flags
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.core import tree
from dinojax.engine import loop
from dinojax.engine import optimizer
from dinojax.engine import report
from dinojax.engine import trainable
from dinojax.parallel import mesh as mesh_lib

RATES = (1e-2, 3e38, 1e-1)
WIDTHS = {'narrow': 4, 'wide': 8}
CLASSES, ROWS, STEPS, GROWS = 3, 8, 8, 3


class Heads:
  """See the module; `step` is one function mapped over the rates."""

  named = 'heads'
  words = {'average': 'averaging'}

  def __init__(self, mesh):
    self.mesh, self.rule = mesh, optimizer.sgd(beta1=0.5)
    self.seen = []  # losses of the rows that were watched

  def variant(self, step):
    return 'averaged' if step >= GROWS else 'plain'

  def variants(self, start, end):
    return sorted({self.variant(step) for step in (start, end - 1)},
                  reverse=True)

  def heaviest(self):
    return 'averaged'

  def batch(self, variant):
    place = jax.NamedSharding(self.mesh, mesh_lib.ROWS)
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(
        shape, dtype, sharding=place)
    return {'image': array(jnp.uint8, ROWS, 4, 4, 3),
            'class': array(jnp.int32, ROWS), 'bad': array(jnp.bool_, ROWS)}

  def prepare(self, batch, step, *, variant):
    return batch | {'image': batch['image'].astype(jnp.float32) / 255}

  def _put(self, make, *args):
    return jax.jit(
        make, out_shardings=jax.NamedSharding(self.mesh, jax.P()))(*args)

  def create(self, key):
    return self._put(lambda key: _fresh(key, self.rule), key)

  def saved(self, info):
    fresh = trainable.shapes_of(self.create(jax.random.key(0)))
    if self.variant(info['step']) == 'plain':
      return fresh
    return self.enter(fresh, 'averaged') | {'step': fresh['step']}

  def enter(self, state, variant):
    if trainable.FROZEN not in state:
      make = lambda: {'w': jax.random.normal(jax.random.key(9), (3, 8))}
      place = jax.NamedSharding(self.mesh, jax.P())
      state = state | {trainable.FROZEN: jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
          jax.eval_shape(make)) if tree.is_abstract(state)
          else self._put(make)}
    if variant == 'averaged' and 'average' not in state:
      params = {n: head['params'] for n, head in state['heads'].items()}
      if not tree.is_abstract(state):
        params = jax.tree.map(jnp.copy, params)
      state = state | {'average': params}
    return state

  def step(self, state, batch, *, variant):
    features = jnp.einsum(
        'byxc,cd->byxd', batch['image'], state['frozen']['w'])
    heads, losses, bad = {}, [], []
    for name, width in WIDTHS.items():
      learn = lambda head, rate, x=features[..., :width]: _learn(
          self.rule, head, rate, x, batch['class'])
      heads[name], loss, wrong = jax.vmap(learn)(
          state['heads'][name], jnp.array(RATES))
      losses.append(loss)
      bad.append(wrong)
    new = state | {
        'step': state['step'] + 1, 'heads': heads, 'counters': {
            'bad_images': state['counters']['bad_images'] + jnp.sum(
                batch['bad'].astype(jnp.int32))}}
    if variant == 'averaged':
      new['average'] = jax.tree.map(
          lambda old, p: 0.5 * old + 0.5 * p, state['average'],
          {n: head['params'] for n, head in heads.items()})
    losses, bad = jnp.concatenate(losses), jnp.concatenate(bad)
    return new, {
        'loss': jnp.min(losses), 'bad_images': new['counters']['bad_images'],
        'diverged': jnp.sum(bad), 'first_bad_leaf': jnp.full((), -1),
        # The run stops only when all of them have diverged.
        'nonfinite_in_row': jnp.min(jnp.stack([
            jnp.min(head['counters']['skipped']) for head in heads.values()]))}

  def evaluated(self, state):
    return {n: head['params'] for n, head in state['heads'].items()}

  def watch(self, row):
    self.seen.append(row['loss'])
    return 'a second row' if len(self.seen) == 2 else None

  def leaf(self, index):
    return f'leaf {index}'


def _fresh(key, rule):
  heads = {}
  for name, width in WIDTHS.items():
    params = jax.vmap(lambda k, w=width: {
        'w': 0.01 * jax.random.normal(k, (w, CLASSES)),
        'scale': jnp.ones(w)})(jnp.stack([key] * len(RATES)))
    heads[name] = {
        'params': params, 'opt': jax.vmap(rule.init)(params),
        'stats': {'mean': jnp.zeros((len(RATES), width))},
        'counters': {'skipped': jnp.zeros(len(RATES), jnp.int32)}}
  return {'step': jnp.int32(0), 'key': key, 'heads': heads,
          'counters': {'bad_images': jnp.int32(0)}}


def _learn(rule, head, rate, x, label):
  """A head after a step, its loss, and whether it was skipped."""
  mean, spread = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-3

  def loss(params):
    y = ((x - mean[None, None, None]) / spread[None, None, None]).mean((1, 2))
    y = y * params['scale'][None]
    logits = jax.nn.log_softmax(y @ params['w'])
    return -jnp.mean(jnp.sum(logits * jax.nn.one_hot(label, CLASSES), -1))

  value, grads = jax.value_and_grad(loss)(head['params'])
  finite, _ = optimizer.finite_report(grads)
  finite &= jnp.isfinite(value)
  ones = jax.tree.map(lambda _: 1.0, grads)
  params, opt = rule.update(
      grads, head['opt'], head['params'], {'lr': rate, 'weight_decay': 0.0},
      optimizer.Multipliers(ones, ones))
  skipped = head['counters']['skipped'] + 1 - finite
  new = optimizer.select(finite, head | {
      'params': params, 'opt': opt,
      'stats': {'mean': 0.9 * head['stats']['mean'] + 0.1 * mean}}, head)
  return (new | {'counters': {'skipped': skipped}},
          jnp.where(finite, value, jnp.inf), 1 - finite)


def batches(step, seconds=0.0):
  """Batches from a step on, each after so many seconds."""
  while True:
    time.sleep(seconds)
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, ROWS)
    images = rng.integers(0, 256, (ROWS, 4, 4, 3), np.uint8)
    images[np.arange(ROWS), 0, 0, labels] = 255
    yield {'image': images, 'class': labels.astype(np.int32),
           'bad': np.arange(ROWS) == step}
    step += 1


def run(workdir, mesh=None, feed=batches, steps=STEPS, **changes):
  """Trains, or continues."""
  mesh = mesh or mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    return loop.run(loop.Job(
        trainable=Heads(mesh), mesh=mesh, workdir=epath.Path(workdir), seed=0,
        total_steps=steps, checkpoint_steps=2, batches=feed, keep=9,
        log=report.Options(batch_size=ROWS, every_steps=1), info={}, **changes))


def entry():
  """A run of its own process, slowly: `WORKDIR`."""
  flags.FLAGS.mark_as_parsed()
  run(sys.argv[1], feed=lambda step: batches(step, 0.1))


if __name__ == '__main__':
  entry()
