"""The students of a step, one or several of one frozen teacher.

The teacher looks at the batch once. Every student then learns by the same
function, from its share of the batch, on its own clock.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinojax.parallel import sharding
from dinojax.train import method as method_lib
from dinojax.train import sections
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib

_SHARED = ('teacher_temperature', 'gram_weight')  # schedules of the teacher


def learn(state: dict, rows: dict, targets: dict, method: method_lib.Method,
          learn_one: Callable) -> tuple[dict, dict]:
  """Updates every student.

  Args:
    state: see state.init.
    rows: crops and masks of the batch, see step.network_rows.
    targets: targets of the batch by term, see step.make_targets.
    method: methods of all students.
    learn_one: (entries of a student, rows, targets, schedules, method) to
      its next entries and its metrics.

  Returns:
    The next state; metrics as NAME/metric, and loss, nonfinite_in_row,
    first_bad_leaf and skipped_steps of all together. A student that is alone
    has its metrics without its name.
  """
  new, metrics, offset = {}, {}, 0
  total = {'loss': jnp.zeros(()), 'first_bad_leaf': jnp.full((), -1),
           'nonfinite_in_row': state_lib.zero(),
           'skipped_steps': state_lib.zero()}
  for name, student in method.each.items():
    entries = state[state_lib.STUDENTS][name]
    alone = name == sections.ALONE
    # One program for both where they are the same: alone, it begins at 0.
    step = state['step'] if alone else state['step'] - entries['begun']
    sched = {key: f(step) for key, f in student.schedules.items()}
    key = state_lib.student_key(state['key'], name)
    after, logged = learn_one(
        entries | {'step': step, 'key': key},
        *share(rows, targets, student.settings), sched, student)
    new[name] = {key: after[key] for key in entries}
    prefix = '' if alone else f'{name}/'
    metrics |= {f'{prefix}{key}': value for key, value in logged.items()}
    metrics |= {f'{prefix}schedule/{key}': value for key, value
                in sched.items() if alone or key not in _SHARED}
    bad = logged['first_bad_leaf']
    total = {
        'loss': total['loss'] + logged['loss'],
        'first_bad_leaf': jnp.where(
            (total['first_bad_leaf'] < 0) & (bad >= 0), bad + offset,
            total['first_bad_leaf']),
        'nonfinite_in_row': jnp.maximum(
            total['nonfinite_in_row'], logged['nonfinite_in_row']),
        'skipped_steps': total['skipped_steps'] + logged['skipped_steps']}
    offset += len(jax.tree.leaves(entries['student']))
  return state | {
      state_lib.STUDENTS: new,
      'counters': dict(state['counters'])}, (
          metrics if sections.ALONE in new else metrics | total)


def share(rows: dict, targets: dict,
          settings: settings_lib.Settings) -> tuple[dict, dict]:
  """The rows and targets of a student's part of the groups of images.

  Of every few groups the first some, so that all devices have as many.
  """
  take, of = settings_lib.fraction(settings.train.share)
  if take == of:
    return rows, targets
  group, crops = settings.train.group_images, settings.crops
  views = {'global': crops.num_global, 'local': crops.num_local}
  pick = lambda x, unit: sharding.some_rows(x, unit, take, of)
  out = dict(rows)
  for name in ('crops', 'masks'):
    if name in rows:
      out[name] = {kind: pick(x, group * views[kind])
                   for kind, x in rows[name].items()}
  for name in ('mask_index', 'mask_weight'):
    if name in rows:
      out[name] = pick(rows[name], 1)
  return out, {
      name: pick(x, getattr(settings, name).rows_per_group(settings))
      for name, x in targets.items()}
