"""The one training step: a pure function of state and batch.

  1. draws and schedules follow from the step counter
  2. the teacher's targets, over the whole batch, without gradient
  3. the student's loss terms and gradients, micro-batch by micro-batch
  4. clip each part, AdamW, EMA of the teacher; skipped if not finite
"""

import jax
import jax.numpy as jnp
import optax

from dinojax.engine import optimizer
from dinojax.kernels import resample
from dinojax.losses import centering
from dinojax.losses import dino
from dinojax.losses import gram
from dinojax.losses import ibot
from dinojax.losses import koleo
from dinojax.losses import sinkhorn
from dinojax.parallel import sharding
from dinojax.train import monitor
from dinojax.train import recipe as recipe_lib
from dinojax.train import state as state_lib
from dinojax.train import students

Array = jax.Array


def train_step(state: dict, batch: dict, *,
               recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """One step of training.

  Args:
    state: see state.init.
    batch: global [b, v, y, x, c], local and gram (may be absent): normalised
      crops;
      mask [b, v, p], mask_index and mask_weight [g, m] (see data.masking);
      bad [b]: images that were replaced.
    recipe: what is trained.

  Returns:
    The next state, and metrics: float32 scalars by name.
  """
  sched = scheduled(state['step'], recipe)
  rows = network_rows(batch)
  targets, centers, seen = make_targets(state, rows, sched, recipe)
  new, metrics = students.learn(state, rows, targets, recipe, _learn)
  if recipe.gram_refresh:
    ema, = state_lib.emas(new).values()
    new = refresh_gram(new, ema['backbone'], recipe.gram_refresh)
  if 'bad' in batch:
    new['counters']['bad_images'] += jnp.sum(batch['bad'].astype(jnp.int32))
  if centers:
    new['centers'] = centers
  new['step'] = state['step'] + 1
  return new, seen | metrics | {'bad_images': new['counters']['bad_images']}


def scheduled(step: Array, recipe: recipe_lib.Recipe) -> dict:
  """Values of the schedules."""
  return {name: f(step) for name, f in recipe.schedules.items()}


def _learn(own: dict, rows: dict, targets: dict, sched: dict,
           recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """One student's update, and its metrics."""
  grads, metrics = differentiate(own, rows, targets, sched, recipe)
  new, said = update(own, grads, metrics['loss'], sched, recipe)
  return new, metrics | said


def differentiate(own: dict, rows: dict, targets: dict, sched: dict,
                  recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """Gradients of a student, and metrics of the losses.

  Args:
    own: see state.init_student; with its step and key.
    rows: see `network_rows`.
    targets: see `make_targets`.
    sched: values of the schedules at this step.
    recipe: what is trained.
  """
  key = jax.random.fold_in(own['key'], own['step'])
  num_groups = num_images(rows, recipe) // recipe.settings.train.group_images
  drawn = jax.tree.map(
      sharding.constrain, recipe.draw(key, num_groups))
  grads, metrics = gradients(
      own['student'], rows | {'draws': drawn}, targets, sched, recipe)
  if 'loss/dino_global' in metrics:
    metrics |= monitor.loss_metrics(
        metrics['loss/dino_global'], monitor.mean_entropy(targets['dino']),
        recipe.settings.dino.num_prototypes)
  return grads, metrics


def num_images(rows: dict, recipe: recipe_lib.Recipe) -> int:
  """Images whose crops are the rows."""
  return len(rows['crops']['global']) // recipe.settings.crops.num_global


def network_rows(batch: dict) -> dict:
  """[b, v, …] crops and masks as the rows [(b v), …] a network takes."""
  flat = lambda x: x.reshape(-1, *x.shape[2:])
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
                 recipe: recipe_lib.Recipe) -> tuple[dict, dict, dict]:
  """Targets of the whole batch from the teacher's global crops.

  Returns:
    targets {dino: [b, v, k], ibot: [g, m, k], gram: [r, p, d]}; the next
    centers (empty without softmax centring); metrics of teacher and targets.
  """
  settings = recipe.settings
  seen = {'crops': {'global': rows['crops']['global']}}
  if 'mask_index' in rows:
    seen['mask_index'] = rows['mask_index']
  anchored = settings.gram.loss_weight > 0
  run = lambda part: recipe.teacher.outputs(
      state_lib.teacher_of(state), part, train=False,
      patches=anchored and recipe.gram is None)
  out = in_parts(run, seen, settings.train.num_micro_batches)
  out = jax.lax.stop_gradient(out)
  logits = {}
  if 'dino' in out:
    views = settings.crops.num_global
    logits['dino'] = out['dino']['global'].reshape(
        -1, views, out['dino']['global'].shape[-1])
  if 'ibot' in out:
    logits['ibot'] = out['ibot']
  targets, centers = {}, {}
  for name, values in logits.items():
    weight = mask_weight(rows) if name == 'ibot' else None
    targets[name], centers[name] = center(
        values, weight, state.get('centers', {}).get(name),
        sched['teacher_temperature'], recipe)
  if anchored:
    targets['gram'] = gram_targets(state, rows, out.get('patches'), recipe)
  metrics = monitor.feature_metrics(out['cls']['global'])
  if 'dino' in targets:
    metrics |= monitor.target_metrics(targets['dino'])
  return targets, centers if 'centers' in state else {}, metrics


def gram_targets(state: dict, rows: dict, patches: Array | None,
                 recipe: recipe_lib.Recipe) -> Array:
  """[r, p, d] patches of the Gram teacher on the student's grid.

  Args:
    state: holds the Gram teacher's backbone, if it has one.
    rows: gram [r, y, x, c] crops for it.
    patches: of the EMA teacher, when that is the Gram teacher.
    recipe: what is trained.

  Source: DINOv3; the grids are square.
  """
  settings = recipe.settings
  if recipe.gram is not None:
    run = lambda crops: recipe.gram.apply(
        state['gram'], {'global': crops},
        lambda net, crops: net(crops)['global']['patches'])
    patches = in_parts(run, rows['gram'], settings.train.num_micro_batches)
  patches = jax.lax.stop_gradient(patches)
  if patches.shape[1] == settings.num_patches:
    return patches
  grid = settings.model.grid((settings.crops.global_px,) * 2)
  return resample.resize_tokens(
      patches, grid, antialias=settings.gram.antialias)


def mask_weight(rows: dict) -> Array:
  """[g, m], split as logits are."""
  return sharding.beside_columns(rows['mask_weight'])


def center(logits: Array, weight: Array | None, mean: Array | None,
           temperature: Array, recipe: recipe_lib.Recipe):
  """Targets from teacher logits, and the next centre (None for Sinkhorn)."""
  teacher = recipe.settings.teacher
  valid = None if weight is None else (weight > 0).astype(jnp.float32)
  if teacher.centering == 'sinkhorn_knopp':
    return sinkhorn.sinkhorn_knopp(
        logits, temperature=temperature, weight=valid,
        num_iterations=teacher.num_iterations), None
  mean = sharding.as_columns(mean)
  targets = centering.softmax_center(logits, mean, temperature)
  seen = (logits.mean((0, 1)) if weight is None
          else centering.group_mean(logits, valid))
  return targets, centering.update_center(
      mean, seen, teacher.center_momentum)


def in_parts(function, rows: dict, num_parts: int):
  """`function` over the rows, `num_parts` chunks one after the other."""
  if num_parts == 1:
    return function(rows)
  parts = sharding.split_rows(rows, num_parts)
  return sharding.merge_rows(jax.lax.map(function, parts))


def gradients(student: dict, rows: dict, targets: dict, sched: dict,
              recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """Gradients of the weighted sum of the loss terms, and the terms.

  Micro-batches hold whole groups, so every term is the mean of its values.
  """
  def loss(student, rows, targets):
    values, counts = terms(student, rows, targets, sched, recipe)
    total = sum(weight * value for weight, value in values.values())
    logged = {f'loss/{name}': value for name, (_, value) in values.items()}
    logged |= {f'weighted/{name}': weight * value
               for name, (weight, value) in values.items()}
    # Of the parts the mean is taken: these are sums.
    logged |= {name: parts * value for name, value in counts.items()}
    return total, logged | {'loss': total}

  grad = jax.grad(loss, has_aux=True)
  parts = recipe.settings.train.num_micro_batches
  if parts == 1:
    return grad(student, rows, targets)
  rows, targets = sharding.split_rows((rows, targets), parts)
  part = lambda i: jax.tree.map(lambda x: x[i], (rows, targets))
  mean = lambda old, new: jax.tree.map(
      lambda a, b: a + b / parts, old, new)

  def body(total, part):
    return mean(total, grad(student, *part)), None

  zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(grad, student, *part(0)))
  return jax.lax.scan(body, zeros, (rows, targets))[0]


def terms(student: dict, rows: dict, targets: dict, sched: dict,
          recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """(weight, value) of every loss term, and what is counted; by name."""
  s = recipe.settings
  # Whole images are distilled: then masks choose patches and hide none.
  hide = not recipe.has_frozen_teacher or s.distillation.hide_masked
  seen = {k: v for k, v in rows.items() if hide or k != 'masks'}
  out = recipe.student.outputs(
      student, seen, train=True, patches='gram' in targets)
  views = {'global': s.crops.num_global, 'local': s.crops.num_local}
  values, counts = {}, {}
  if s.dino.loss_weight:
    weights = dict(zip(views, dino.dino_weights(
        *views.values(), s.dino.ignore_diagonal), strict=True))
    weights['local'] *= sched['dino_local_weight']
    for kind, logits in out['dino'].items():
      logits = logits.reshape(-1, views[kind], logits.shape[-1])
      values[f'dino_{kind}'] = (
          s.dino.loss_weight * weights[kind],
          dino.dino(
              logits, targets['dino'],
              student_temperature=s.dino.student_temperature,
              ignore_diagonal=kind == 'global' and s.dino.ignore_diagonal))
  if s.ibot.loss_weight:
    values['ibot'] = s.ibot.loss_weight, ibot.ibot(
        out['ibot'], targets['ibot'], mask_weight(rows),
        num_rows=rows['crops']['global'].shape[0],
        student_temperature=s.ibot.student_temperature)
  if s.koleo.loss_weight:
    groups = koleo_groups(out['cls']['global'], views['global'], s.koleo)
    values['koleo'] = (s.koleo.loss_weight * views['global'],
                       koleo.koleo(groups, topk=s.koleo.topk))
    counts['koleo/duplicates'] = koleo.duplicates(groups)
  if 'gram' in targets:
    mask = rows.get('masks', {}).get('global')
    values['gram'] = (
        s.gram.loss_weight * sched['gram_weight'],
        anchor(out['patches'], targets['gram'], mask, s,
               tokens=s.gram.tokens, per_image=s.gram.per_image))
    for tokens in ('masked', 'unmasked') if s.gram.log_masked else ():
      values[f'gram_{tokens}'] = 0.0, anchor(
          jax.lax.stop_gradient(out['patches']), targets['gram'], mask, s,
          tokens=tokens, per_image=False)
  return values, counts


def anchor(patches: Array, targets: Array, mask: Array | None, settings, *,
           tokens: str, per_image: bool) -> Array:
  """Gram loss of patches [r, p, d], per image or within groups of images."""
  weight = None
  if tokens != 'all':
    chosen = mask if tokens == 'masked' else ~mask
    weight = chosen.astype(jnp.float32)
  if not per_image:
    rows = settings.train.group_images * settings.crops.num_global
    patches, targets, weight = jax.tree.map(
        lambda x: sharding.group(x, rows), (patches, targets, weight))
  return gram.gram(
      patches, targets, weight=weight, normalize=settings.gram.normalize,
      per_image=per_image,
      remove_negative=settings.gram.remove_negative,
      remove_only_teacher_negative=settings.gram.remove_only_teacher_negative)


def koleo_groups(cls: Array, views: int, settings) -> Array:
  """[(b v), d] as [(g v), n, d]: groups of images, each view by itself."""
  cls = cls.reshape(-1, views, cls.shape[-1])
  groups = sharding.group(cls, settings.group_images)  # [g, n, v, d]
  groups = jnp.moveaxis(groups, 2, 1)
  return groups.reshape(-1, *groups.shape[2:])


def update(own: dict, grads: dict, loss: Array, sched: dict,
           recipe: recipe_lib.Recipe) -> tuple[dict, dict]:
  """Clip, AdamW, EMA of a student; nothing moves if a gradient is not finite.
  """
  finite, first_bad = optimizer.finite_report(grads)
  finite &= jnp.isfinite(loss)
  grads, norms = optimizer.clip_per_part(
      grads, recipe.settings.optimizer.clip_norm)
  student, opt = recipe.optimizer.update(
      grads, own['opt'], own['student'],
      {name: sched[name] for name in ('lr', 'weight_decay')},
      recipe.factors.at(sched))
  ema = optax.incremental_update(
      student, own['ema'], 1 - sched['momentum'])
  keep = lambda new, old: optimizer.select(finite, new, old)
  skipped = 1 - finite.astype(jnp.int32)
  counters = own['counters']
  counters = {
      'skipped_steps': counters['skipped_steps'] + skipped,
      'nonfinite_in_row': (counters['nonfinite_in_row'] + 1) * skipped}
  new = own | {
      'student': keep(student, own['student']), 'ema': keep(ema, own['ema']),
      'opt': keep(opt, own['opt']), 'counters': counters}
  metrics = {f'grad_norm/{name}': norm for name, norm in norms.items()}
  return new, metrics | {'first_bad_leaf': first_bad} | counters


def refresh_gram(state: dict, backbone: dict,
                 refresh: recipe_lib.Refresh) -> dict:
  """The state with the Gram teacher renewed from the EMA, when it is time."""
  done, next_step = state['counters']['gram_refreshes'], state['step'] + 1
  due = (next_step >= refresh.start) & (next_step % refresh.every == 0)
  if refresh.limit is not None:
    due &= done < refresh.limit
  return state | {
      'gram': optimizer.select(due, backbone, state['gram']),
      'counters': state['counters'] | {
          'gram_refreshes': done + due.astype(jnp.int32)}}
