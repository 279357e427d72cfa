"""Every config reads, checks, and traces its full-size step."""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest

from dinojax.core import tree
from dinojax.engine import program
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import method as method_lib
from dinojax.train import pretraining
from dinojax.train import settings as settings_lib
from dinojax.train import state as state_lib
from dinojax.train import variants

NAMES = sorted(
    p.stem for p in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')
    if p.stem not in ('__init__', 'common', 'dinotxt'))
# Of files with several students, one: they are traced alike.
VARIANTS = [(name, '') for name in NAMES
            if name not in ('vit7b_distill', 'convnext_distill')] + [
    ('vit7b_distill', 'vith16plus'), ('convnext_distill', 'tiny')]
# Other arguments of the same files.
SLOW = [('vitl', 'v3'), ('vitl_gram', 's'), ('vitg_highres', 's'),
        ('vit7b_distill', ''), ('convnext_distill', ''),
        ('vitg_highres', 'b'), ('vitg_highres', 'l'),
        ('vitg_highres', 'l_swiglu'), ('vitg_distill', 's'),
        ('vitg_distill', 's,b'), ('vit7b_distill', 'vits16'),
        ('vit7b_distill', 'late'), ('vit7b_distill', 'late,vitl16'),
        ('vit7b_distill', 'vits16,vitb16'),
        ('vit7b_distill', 'convnext_base'), ('vitl_gram', 'b')]
# Traced as others are, but for sizes.
ALIKE = ('demo', 'small_images', 'vitb', 'vitl', 'vitl14', 'vitl_satellite',
         'vit7b', 'vit7b_gram', 'vit7b_highres', 'vitg_highres',
         'vitg_distill', 'photos')
ALL = [v for v in VARIANTS if v[0] not in ALIKE] + [
    pytest.param(*v, marks=pytest.mark.slow)
    for v in [(name, '') for name in ALIKE] + SLOW]


def load(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


@pytest.mark.parametrize('name, arg', ALL)
@pytest.mark.parametrize('which', [
    'heaviest', pytest.param('each', marks=pytest.mark.slow)])
def test_full_size_step_traces(name, arg, which):
  s = settings_lib.read(load(name, arg))
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    whole = method_lib.build(s, mesh, epoch_steps=100)
    last = method_lib.total_steps(s, 100)
    trainable = pretraining.Pretraining(whole, mesh)
    for variant in (variants.between(whole, 0, last) if which == 'each'
                    else [variants.heaviest(whole)]):
      state = state_lib.abstract(trainable.of(variant), mesh)
      rows = program.prepared(trainable, variant, mesh)
      new, metrics = jax.eval_shape(
          functools.partial(trainable.step, variant=variant), state, rows)
      assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(
          lambda x: x.shape, state)
      assert metrics['loss'].shape == ()
      assert ('gram' in state) == (
          variant.is_anchored and s.gram.teacher == 'frozen')


def test_vitg_has_the_published_size():
  s = settings_lib.read(load('vitg'))
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    method = method_lib.build(s, mesh, epoch_steps=1)
  assert tree.num_elements(method.student.shapes['backbone']) == 1_134_771_200


@pytest.mark.parametrize('arg, peak', [('', 5.65685e-3), ('v3', 5.65685e-3)])
def test_vitl_reaches_the_published_learning_rate(arg, peak):
  s = settings_lib.read(load('vitl', arg))
  plan = method_lib.make_schedules(s, epoch_steps=1250)
  np.testing.assert_allclose(plan['lr'](12_499), peak, rtol=1e-5)
  np.testing.assert_allclose(plan['teacher_temperature'](37_499), 0.07)
  assert plan['last_layer_lr'](1249) == 0 < plan['last_layer_lr'](1250)


@pytest.mark.parametrize('name, arg', VARIANTS + SLOW)
def test_smoke_variant_reads(name, arg):
  words = ','.join(filter(None, (arg, 'smoke')))
  s = settings_lib.read(load(name, words))
  assert s.train.batch_size == 8


def test_all_mistakes_are_reported_at_once():
  c = load('demo').unlock()
  c.crops.global_px = 50
  c.model.num_heads = 5
  c.teacher.centering = 'sinkhorn'
  c.koleo.group_images = 7
  c.optimizer.betas = (0.9, 0.95)
  with pytest.raises(settings_lib.errors.UserError) as caught:
    settings_lib.read(c)
  assert 'optimizer.betas is not a key' in str(caught.value)
  del c.optimizer.betas
  with pytest.raises(settings_lib.errors.UserError) as caught:
    settings_lib.read(c)
  text = str(caught.value)
  for part in ('4 mistakes', 'crops.global_px=50', 'set it to 48 or 56',
               'model.num_heads=5', "teacher.centering='sinkhorn'",
               'koleo.group_images=7'):
    assert part in text


def test_another_unit_of_a_duration_from_the_command_line():
  c = load('vits')
  c.train.total_steps = 8.0
  with pytest.raises(settings_lib.errors.UserError,
                     match='train.total_epochs are both set.*other to 0'):
    settings_lib.read(c)
  c.train.total_epochs = 0.0
  total = settings_lib.read(c).train.total
  assert (total.value, total.unit) == (8.0, 'steps')
