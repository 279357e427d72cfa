"""The one training step: a pure function of state and batch.

  1. draws and schedules follow from the step counter
  2. the teacher's targets, over the whole batch, without gradient
  3. the student's loss terms and gradients, micro-batch by micro-batch
  4. clip each part, AdamW, EMA of the teacher; skipped if not finite
"""

import functools

import einops
import jax
import jax.numpy as jnp
import optax

from dinojax.engine import optimizer
from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import monitor
from dinojax.train import state as state_lib
from dinojax.train import students
from dinojax.train.objectives import objective

Array = jax.Array


def train_step(state: dict, batch: dict, *,
               method: method_lib.Method) -> tuple[dict, dict]:
  """One step of training.

  Args:
    state: see state.init.
    batch: global [b, v, y, x, c], local and gram (may be absent): normalised
      crops;
      mask [b, v, p], mask_index and mask_weight [g, m] (see data.masking);
      bad [b]: images that were replaced.
    method: networks, schedules and settings.

  Returns:
    The next state, and metrics: float32 scalars by name.
  """
  sched = scheduled(state['step'], method)
  rows = network_rows(batch)
  targets, centers, seen = make_targets(state, rows, sched, method)
  new, metrics = students.learn(state, rows, targets, method, _learn)
  if method.gram_refresh:
    ema, = state_lib.emas(new).values()
    new = refresh_gram(new, ema['backbone'], method.gram_refresh)
  if 'bad' in batch:
    new['counters']['bad_images'] += jnp.sum(batch['bad'].astype(jnp.int32))
  if centers:
    new['centers'] = centers
  new['step'] = state['step'] + 1
  return new, seen | metrics | {'bad_images': new['counters']['bad_images']}


def scheduled(step: Array, method: method_lib.Method) -> dict:
  """Values of the schedules."""
  return {name: f(step) for name, f in method.schedules.items()}


def _learn(entries: dict, rows: dict, targets: dict, sched: dict,
           method: method_lib.Method) -> tuple[dict, dict]:
  """One student's update, and its metrics."""
  grads, metrics = differentiate(entries, rows, targets, sched, method)
  new, logged = update(entries, grads, metrics['loss'], sched, method)
  return new, metrics | logged


def differentiate(entries: dict, rows: dict, targets: dict, sched: dict,
                  method: method_lib.Method) -> tuple[dict, dict]:
  """Gradients of a student, and metrics of the losses.

  Args:
    entries: see state.init_student; with its step and key.
    rows: see `network_rows`.
    targets: see `make_targets`.
    sched: values of the schedules at this step.
    method: method of the student.
  """
  key = jax.random.fold_in(entries['key'], entries['step'])
  num_groups = num_images(rows, method) // method.settings.train.group_images
  drawn = jax.tree.map(
      sharding.constrain, method.draw(key, num_groups))
  grads, metrics = gradients(
      entries['student'], rows | {'draws': drawn}, targets, sched, method)
  for term in method.settings.objectives:
    metrics |= term.loss_metrics(metrics, targets)
  return grads, metrics


def num_images(rows: dict, method: method_lib.Method) -> int:
  """Images whose crops are the rows."""
  return len(rows['crops']['global']) // method.settings.crops.num_global


def network_rows(batch: dict) -> dict:
  """[b, v, …] crops and masks as the rows [(b v), …] a network takes."""
  flat = lambda x: einops.rearrange(x, 'b v ... -> (b v) ...')
  rows = {'crops': {kind: flat(batch[kind])
                    for kind in ('global', 'local') if kind in batch}}
  if 'gram' in batch:
    rows['gram'] = flat(batch['gram'])
  if 'mask' in batch:
    rows['masks'] = {'global': flat(batch['mask'])}
    rows['mask_index'] = batch['mask_index']
    rows['mask_weight'] = batch['mask_weight']
  return rows


def make_targets(state: dict, rows: dict, sched: dict,
                 method: method_lib.Method) -> tuple[dict, dict, dict]:
  """Targets of the whole batch from the teacher's global crops.

  Returns:
    targets by term of the loss; the next centers (empty without softmax
    centring); metrics of teacher and targets.
  """
  settings = method.settings
  micro = settings.train.num_micro_batches
  seen = {'crops': {'global': rows['crops']['global']}}
  if 'mask_index' in rows:
    seen['mask_index'] = rows['mask_index']
  out = by_microbatch(functools.partial(
      method.teacher.outputs, state_lib.teacher_of(state), train=False,
      patches='patches' in wanted(settings, 'teacher_wants')), micro)(seen)
  out = jax.lax.stop_gradient(out)
  if method.gram is not None:
    out |= {'gram_patches': by_microbatch(functools.partial(
        gram_patches, method, state['gram']), micro)(rows['gram'])}
  taught = objective.Forward(
      settings=settings, schedules=sched, rows=rows, out=out,
      centers=state.get('centers', {}))
  targets, centers = {}, {}
  metrics = monitor.feature_metrics(out['cls']['global'])
  for term in settings.objectives:
    target, center = term.targets(taught)
    if target is not None:
      targets[term.NAME] = target
      metrics |= term.target_metrics(target)
    if center is not None:
      centers[term.NAME] = center
  return targets, centers, metrics


def gram_patches(method: method_lib.Method, params: dict,
                 crops: Array) -> Array:
  """[r, p, d] patches of [r, y, x, c] crops by the Gram teacher."""
  return method.gram.apply(
      params, {'global': crops},
      lambda net, crops: net(crops)['global']['patches'])


def wanted(settings, whose: str) -> frozenset[str]:
  """Outputs beyond the heads' that the terms of the loss want."""
  return frozenset().union(
      *(getattr(term, whose)() for term in settings.objectives))


def by_microbatch(function, num_micro_batches: int):
  """The function of rows, taken micro-batch by micro-batch."""
  if num_micro_batches == 1:
    return function
  return lambda rows: sharding.merge_rows(jax.lax.map(
      function, sharding.split_rows(rows, num_micro_batches)))


def gradients(student: dict, rows: dict, targets: dict, sched: dict,
              method: method_lib.Method) -> tuple[dict, dict]:
  """Gradients of the weighted sum of the loss terms, and the terms.

  Micro-batches hold whole groups, so every term is the mean of its values.
  """
  micro = method.settings.train.num_micro_batches

  def loss(student, rows, targets):
    values, counts = terms(student, rows, targets, sched, method)
    total = sum(weight * value for weight, value in values.values())
    logged = {f'loss/{name}': value for name, (_, value) in values.items()}
    logged |= {f'weighted/{name}': weight * value
               for name, (weight, value) in values.items()}
    # Of the micro-batches the mean is taken: these are sums.
    logged |= {name: micro * value for name, value in counts.items()}
    return total, logged | {'loss': total}

  grad = jax.grad(loss, has_aux=True)
  if micro == 1:
    return grad(student, rows, targets)
  rows, targets = sharding.split_rows((rows, targets), micro)
  first = jax.tree.map(lambda x: x[0], (rows, targets))
  mean = lambda old, new: jax.tree.map(
      lambda a, b: a + b / micro, old, new)

  def body(total, microbatch):
    return mean(total, grad(student, *microbatch)), None

  zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(grad, student, *first))
  return jax.lax.scan(body, zeros, (rows, targets))[0]


def terms(student: dict, rows: dict, targets: dict, sched: dict,
          method: method_lib.Method) -> tuple[dict, dict]:
  """(weight, value) of every loss term, and what is counted; by name."""
  settings = method.settings
  # Whole images are distilled: then masks choose patches and hide none.
  hide = not method.has_frozen_teacher or settings.distillation.hide_masked
  seen = {k: v for k, v in rows.items() if hide or k != 'masks'}
  forward = objective.Forward(
      settings=settings, schedules=sched, rows=rows, targets=targets,
      out=method.student.outputs(
          student, seen, train=True,
          patches='patches' in wanted(settings, 'student_wants')))
  values, counts = {}, {}
  for term in settings.objectives:
    losses, counted = term.terms(forward)
    values |= losses
    counts |= counted
  return values, counts


def update(entries: dict, grads: dict, loss: Array, sched: dict,
           method: method_lib.Method) -> tuple[dict, dict]:
  """Clip, AdamW, EMA of a student; nothing moves if a gradient is not finite.
  """
  finite, first_bad = optimizer.finite_report(grads)
  finite &= jnp.isfinite(loss)
  grads, norms = optimizer.clip_per_part(
      grads, method.settings.optimizer.clip_norm)
  student, opt = method.optimizer.update(
      grads, entries['opt'], entries['student'],
      {name: sched[name] for name in ('lr', 'weight_decay')},
      method.factors.at(sched))
  ema = optax.incremental_update(
      student, entries['ema'], 1 - sched['momentum'])
  keep = lambda new, old: optimizer.select(finite, new, old)
  skipped = 1 - finite.astype(jnp.int32)
  counters = entries['counters']
  counters = {
      'skipped_steps': counters['skipped_steps'] + skipped,
      'nonfinite_in_row': (counters['nonfinite_in_row'] + 1) * skipped}
  new = entries | {
      'student': keep(student, entries['student']),
      'ema': keep(ema, entries['ema']),
      'opt': keep(opt, entries['opt']), 'counters': counters}
  metrics = {f'grad_norm/{name}': norm for name, norm in norms.items()}
  return new, metrics | {'first_bad_leaf': first_bad} | counters


def refresh_gram(state: dict, backbone: dict,
                 refresh: method_lib.Refresh) -> dict:
  """The state with the Gram teacher renewed from the EMA, when it is time."""
  done, next_step = state['counters']['gram_refreshes'], state['step'] + 1
  due = (next_step >= refresh.start) & (next_step % refresh.every == 0)
  if refresh.limit is not None:
    due &= done < refresh.limit
  return state | {
      'gram': optimizer.select(due, backbone, state['gram']),
      'counters': state['counters'] | {
          'gram_refreshes': done + due.astype(jnp.int32)}}
