"""Training of many heads at once on one frozen backbone, as a Trainable.

For every choice of features there is a stack of heads that differ in their
rates. One function learns one head, and is mapped over the stack: a head that
diverges is skipped, counted and ranked last, and stops no other. Of one head
alone, parts of the backbone may be trained with it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dinojax.augment import photometric
from dinojax.core import tree
from dinojax.engine import optimizer as optimizer_lib
from dinojax.engine import trainable
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec as spec_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes import finetuning
from dinojax.probes import task as task_lib

Array = jax.Array
FEATURES = 'features'  # of a batch that has them already


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Rates of the heads of every choice of features.

  Attributes:
    lr: learning rate of each head, at its highest.
    weight_decay: weight decay of each; one number: of all.
  """

  lr: tuple[float, ...]
  weight_decay: tuple[float, ...] | float = 0.0

  @property
  def size(self) -> int:
    """Heads of a choice."""
    return len(self.lr)

  def rates(self) -> dict[str, Array]:
    """[s] values by name."""
    return {'lr': jnp.asarray(self.lr, jnp.float32),
            'weight_decay': jnp.broadcast_to(jnp.asarray(
                self.weight_decay, jnp.float32), (self.size,))}


class Fit:
  """Heads of a task on a frozen backbone, see the module.

  The state holds `heads`, by choice {'params', 'opt', 'counters'} of stacks
  with the heads leading, 'stats' where the task has any, 'ema' where an
  average is kept, and `frozen`, the backbone, unless batches bring features.
  """

  named = 'heads'
  words: Mapping[str, str] = {}

  def __init__(self, task: task_lib.Task, model: backbone_lib.Backbone,
               batch: tree.Tree, *, sweep: Sweep,
               rule: optimizer_lib.Optimizer,
               schedule: Callable[[Array], Mapping[str, Array]],
               factors: Callable[[tree.Tree, Array], tree.Tree] | None = None,
               seed: int = 0, clip_norm: float | None = None,
               heads_at_once: int | None = None,
               trainable: finetuning.Trained | None = None,
               ema_decay: float | None = None,
               decays: Callable[[tree.Tree], tree.Tree] | None = None):
    """Plans the training of heads.

    Args:
      task: the task that they learn.
      model: the backbone, on the devices that train.
      batch: shapes and shardings of what the host sends: image [b, y, x, c]
        uint8, or features by task.array_name; bad [b]; and what the task
        reads.
      sweep: rates of the heads.
      rule: the optimizer.
      schedule: step to factors of lr and weight_decay, and beta1 itself where
        it moves; all optional.
      factors: parameters of a head and a step to more factors of lr, one for
        each of them; None: there are none.
      seed: start of the random changes of images, see Task.prepare.
      clip_norm: norm that the gradients of a head are clipped to; None: not.
      heads_at_once: heads that are trained side by side, where all would not
        fit the memory; None: all.
      trainable: part of the backbone that is trained too, with one head that
        gets images.
      ema_decay: share that an average of the parameters keeps in a step;
        None: there is none.
      decays: see finetuning.multipliers.

    Raises:
      ValueError: parts of the backbone with several heads, or with features.
    """
    self.task, self.model, self.sweep = task, model, sweep
    self._batch, self._rule, self._schedule = batch, rule, schedule
    self._clip_norm, self._at_once = clip_norm, heads_at_once
    self._seed, self._ema_decay, self._factors = seed, ema_decay, factors
    self._trainable, self._decays = trainable, decays
    if trainable and (sweep.size * len(task.choices) != 1
                      or not self.takes_images):
      raise ValueError('parts of the backbone are trained with one head, that '
                       'gets images: give one rate and one choice')
    self._warned = 0  # heads that diverged, told already
    self._everywhere = jax.NamedSharding(model.mesh, jax.P())

  @property
  def takes_images(self) -> bool:
    """False: batches bring features that were computed before."""
    return FEATURES not in self._batch

  @property
  def name(self) -> str:
    """A text that differs where programs do, of one model's sizes."""
    return (f'{self.task} {self.sweep} {self._clip_norm} {self._trainable} '
            f'{self._factors}')

  def without_weights(self) -> 'Fit':
    """The same training, for programs alone: it holds no backbone."""
    out = copy.copy(self)
    out.model = copy.copy(self.model)
    out.model.params = None
    return out

  # --- what the loop and planning ask ---

  def variant(self, step: int) -> Hashable:
    """Every step has the same program."""
    del step
    return 'heads'

  def variants(self, start: int, end: int) -> Sequence[Hashable]:
    """The one program."""
    del start, end
    return ('heads',)

  def heaviest(self) -> Hashable:
    """The one program."""
    return 'heads'

  def batch(self, variant: Hashable) -> tree.Tree:
    """Shapes and shardings of what the host sends."""
    del variant
    return self._batch

  def prepare(self, batch: tree.Tree, step: Array, *,
              variant: Hashable) -> tree.Tree:
    """Normalised images, and what the task changes of them."""
    del variant
    if self.takes_images:
      batch = batch | {'image': photometric.normalize(
          batch['image'], self.model.mean, self.model.std)}
    return self.task.prepare(
        batch, jax.random.fold_in(jax.random.key(self._seed), step))

  def create(self, key: Array) -> trainable.State:
    """Heads before their first step."""
    shapes = jax.eval_shape(self._fresh, key, self.model.params)
    return jax.jit(self._fresh, out_shardings=self._shardings(shapes))(
        key, self.model.params)

  def saved(self, info: Mapping[str, Any]) -> trainable.State:
    """Shapes of a checkpoint: the same at every step."""
    del info
    shapes = self._shapes()
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding),
        shapes, self._shardings(shapes))

  def enter(self, state: trainable.State,
            variant: Hashable) -> trainable.State:
    """The state with the backbone, which no checkpoint holds."""
    del variant
    if not self.takes_images or trainable.FROZEN in state:
      return state
    frozen = self.model.params
    if self._trainable:
      _, frozen = self._trainable.divide(frozen)
    return state | {trainable.FROZEN: trainable.shapes_of(frozen) if (
        tree.is_abstract(state)) else jax.tree.map(jnp.copy, frozen)}

  def evaluated(self, state: trainable.State) -> dict[str, tree.Tree]:
    """Parameters and statistics of the stacks, by choice."""
    return {choice: {'params': heads.get('ema', heads['params']),
                     'stats': heads.get('stats', {})}
            for choice, heads in state['heads'].items()}

  def watch(self, row: Mapping[str, float]) -> str | None:
    """Says when heads have diverged, once for each number of them."""
    count = int(row.get('diverged', 0))
    if count <= self._warned:
      return None
    self._warned = count
    return (f'{count} of {self.sweep.size * len(self.task.choices)} heads have '
            'no finite loss at their rates: they are ranked last')

  def leaf(self, index: int) -> str:
    """The name of a gradient of the heads."""
    names = [f'{choice}/{name}'
             for choice, heads in self._shapes()['heads'].items()
             for name, _ in tree.items(heads['params'])]
    return names[index]

  # --- the step ---

  def step(self, state: trainable.State, batch: tree.Tree, *,
           variant: Hashable) -> tuple[trainable.State, trainable.Metrics]:
    """One update of every head."""
    del variant
    if self._trainable:
      heads, losses, wrong = self._finetune(state, batch)
    else:
      heads, losses, wrong = self.learn(
          state, self.features(state, batch), batch)
    rows = jnp.concatenate([losses[choice] for choice in heads])
    in_row = jnp.concatenate([
        head['counters']['in_row'] for head in heads.values()])
    counters = {'bad_images': state['counters']['bad_images'] + jnp.sum(
        batch['bad'].astype(jnp.int32))}
    metrics = {
        'loss': jnp.min(rows), 'loss/median': jnp.nanmedian(
            jnp.where(jnp.isfinite(rows), rows, jnp.nan)),
        'diverged': jnp.sum((in_row > 0).astype(jnp.int32)),
        'bad_images': counters['bad_images'], 'first_bad_leaf': wrong,
        # The run stops only when every head has diverged.
        'nonfinite_in_row': jnp.min(in_row)}
    return state | {'step': state['step'] + 1, 'heads': heads,
                    'counters': counters}, metrics

  def features(self, state: trainable.State, batch: tree.Tree
               ) -> dict[str, task_lib.Features]:
    """Features of a batch by choice, without gradient."""
    choices = dict(self.task.choices)
    if self.takes_images:
      return self.model.net.apply(
          state[trainable.FROZEN], batch['image'], functools.partial(
              spec_lib.compute, specs=choices))
    return {name: task_lib.read_features(
        batch[FEATURES], wanted, self.model.config.depth)
            for name, wanted in choices.items()}

  def learn(self, state: trainable.State,
            computed: Mapping[str, task_lib.Features], batch: tree.Tree
            ) -> tuple[dict, dict[str, Array], Array]:
    """Heads after an update, by choice.

    Returns:
      The stacks, [s] losses (infinite where a head was skipped), and the
      first leaf without a finite gradient, −1 for none.
    """
    step = state['step']
    key = jax.random.fold_in(state['key'], step)
    draws = self.task.draw(key, step, batch)
    rates = self.rates(step)
    shared = {k: v for k, v in rates.items() if not jnp.ndim(v)}
    rates = {k: v for k, v in rates.items() if k not in shared}
    heads, losses, wrong = {}, {}, []
    for choice, features in computed.items():
      learn = lambda head, rates, features=features: self._learn(
          head, rates | shared, lambda params: features, batch, draws, step)
      stack = (state['heads'][choice], rates)
      if self._at_once is None:
        heads[choice], losses[choice], bad = jax.vmap(learn)(*stack)
      else:
        heads[choice], losses[choice], bad = jax.lax.map(
            lambda both, learn=learn: learn(*both), stack,
            batch_size=self._at_once)
      wrong.append(bad)
    wrong = jnp.concatenate(wrong)
    return heads, losses, jnp.max(wrong)

  def _finetune(self, state: trainable.State, batch: tree.Tree
                ) -> tuple[dict, dict[str, Array], Array]:
    """The one head after an update with its part of the backbone."""
    step, (choice,) = state['step'], self.task.choices
    key = jax.random.fold_in(state['key'], step)
    skipping = self._trainable.draw(
        jax.random.fold_in(key, 1), self.model.config,
        batch['image'].shape[0])
    first = lambda stack: jax.tree.map(lambda x: x[0], stack)

    def features(params):
      weights = tree.join(
          state[trainable.FROZEN], params[finetuning.BACKBONE])
      return finetuning.features(
          self.model, weights, batch['image'], dict(self.task.choices),
          skipping)[choice]

    rates = {name: value[0] if jnp.ndim(value) else value
             for name, value in self.rates(step).items()}
    head, loss, wrong = self._learn(
        first(state['heads'][choice]), rates, features, batch,
        self.task.draw(key, step, batch), step)
    return ({choice: jax.tree.map(lambda x: x[None], head)},
            {choice: loss[None]}, wrong)

  def rates(self, step: Array) -> dict[str, Array]:
    """Rates of a step: [s] of every head, or one number of all."""
    factors = dict(self._schedule(step))
    swept = {name: value * factors.pop(name, 1.0)
           for name, value in self.sweep.rates().items()}
    return swept | factors

  def _learn(self, head: dict, rates: Mapping[str, Array],
             features: Callable[[tree.Tree], task_lib.Features],
             batch: tree.Tree, draws: tree.Tree, step: Array
             ) -> tuple[dict, Array, Array]:
    """One head after an update, its loss, and its first bad leaf.

    Args:
      head: parameters, state of the optimizer, and more.
      rates: values of now.
      features: function of the parameters to the features of the head.
      batch: see Task.
      draws: see Task.
      step: number of updates before.
    """
    seen = head.get('stats', {})

    def loss(params):
      outputs, stats = self.task.outputs(
          {'params': params, 'stats': seen}, features(params), batch, draws)
      return self.task.loss(outputs, batch, draws), stats

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
        head['params'])
    is_finite, leaf = optimizer_lib.finite_report(grads)
    is_finite &= jnp.isfinite(value)
    params, opt = self._rule.update(
        finetuning.clipped(grads, self._clip_norm), head['opt'],
        head['params'], rates, finetuning.multipliers(
            head['params'], self._trainable, self.model.config.depth,
            self._decays, self._factors and self._factors(
                head['params'], step)))
    new = {'params': self.task.settle(params), 'opt': opt} | (
        {'stats': stats} if seen else {})
    if self._ema_decay is not None:
      new['ema'] = optax.incremental_update(
          new['params'], head['ema'], 1 - self._ema_decay)
    new = optimizer_lib.select(
        is_finite, new, {name: head[name] for name in new})
    bad = 1 - is_finite.astype(jnp.int32)
    counters = {'skipped': head['counters']['skipped'] + bad,
                'in_row': (head['counters']['in_row'] + 1) * bad}
    return (new | {'counters': counters},
            jnp.where(is_finite, value, jnp.inf), leaf)

  def _shapes(self) -> trainable.State:
    # The key is made inside: devices of a plan are not there to hold it.
    return jax.eval_shape(lambda params: self._fresh(
        jax.random.key(0), params), self.model.params)

  def _shardings(self, shapes: trainable.State) -> tree.Tree:
    if self._trainable:
      return self._trainable.shardings(shapes, self.model)
    if hasattr(self.task, 'specs'):
      return finetuning.split(shapes, self.task.specs(self.model.mesh),
                              self.model.mesh)
    return jax.tree.map(lambda _: self._everywhere, shapes)

  def _fresh(self, key: Array, backbone: tree.Tree) -> trainable.State:
    heads, given = {}, {}
    taken = finetuning.copies(self.task.taken(backbone), self.sweep.size)
    if self._trainable:
      given[finetuning.BACKBONE], _ = self._trainable.divide(backbone)
    for i, (choice, wanted) in enumerate(self.task.choices.items()):
      keys = jax.random.split(jax.random.fold_in(key, i), self.sweep.size)
      widths = wanted.widths(self.model.config)
      head = jax.vmap(lambda k, c=choice, w=widths: self.task.init(
          k, w, c))(keys)
      head['params'] |= taken | jax.tree.map(
          lambda x: x[None], finetuning.in_float32(given))
      # Checkpoints hold no empty entries.
      heads[choice] = {name: part for name, part in head.items() if part} | {
          'opt': jax.vmap(self._rule.init)(head['params']),
          **({'ema': head['params']} if self._ema_decay is not None else {}),
          'counters': {name: jnp.zeros(self.sweep.size, jnp.int32)
                       for name in ('skipped', 'in_row')}}
    return {'step': jnp.int32(0), 'key': key, 'heads': heads,
            'counters': {'bad_images': jnp.int32(0)}}


def rows(mesh: jax.sharding.Mesh, dtype: Any, *shape: int
         ) -> jax.ShapeDtypeStruct:
  """Shape of an array of a batch, whose rows are split over all devices."""
  return jax.ShapeDtypeStruct(
      shape, dtype, sharding=jax.NamedSharding(mesh, mesh_lib.ROWS))
