"""Published values, as a run would use them: computed, not read from files."""

import importlib

import jax
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import masking
from dinojax.models import network
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import method as method_lib
from dinojax.train import settings as settings_lib


def load(name, arg=''):
  return settings_lib.read(
      importlib.import_module(f'configs.{name}').get_config(arg))


def schedules(s):
  return method_lib.make_schedules(s, s.train.epoch_steps)


def steps(s):
  return method_lib.total_steps(s, s.train.epoch_steps)


# config, argument, steps, batch, step of the highest rate, that rate
RATES = [
    ('vitl', '', 125_000, 2048, 12_499, 5.65685e-3),
    ('vitl', 'v3', 125_000, 2048, 12_499, 5.65685e-3),
    ('vitl14', '', 625_000, 3072, 99_999, 3.4641e-4),
    ('vitg', '', 625_000, 3072, 99_999, 3.4641e-4),
    ('vit7b', '', 1_000_000, 4096, 100_000, 4e-4),
    ('vit7b_gram', '', 200_000, 4096, 199_999, 2.4e-4),
    ('vit7b_highres', '', 30_000, 2048, 29_999, 7.07107e-5),
    ('vit7b_distill', 'late', 25_000, 1920, 24_999, 2.63391e-4),
    ('convnext_distill', 'tiny', 625_000, 4096, 100_000, 1.6e-3),
    ('convnext_distill', 'small', 625_000, 4096, 100_000, 1.6e-3),
    ('convnext_distill', 'base', 625_000, 4096, 100_000, 8e-4),
    ('convnext_distill', 'large', 625_000, 4096, 100_000, 8e-4),
]


@pytest.mark.parametrize('name, arg, total, batch, step, rate', RATES)
def test_length_batch_and_highest_rate(name, arg, total, batch, step, rate):
  s = load(name, arg)
  lr = schedules(s)['lr']
  assert (steps(s), s.train.batch_size) == (total, batch)
  np.testing.assert_allclose(lr(step), rate, rtol=1e-5)
  assert np.max(lr(np.arange(0, total, 50))) <= rate * (1 + 1e-5)


def test_vitl_short_spot_values():
  plan = schedules(load('vitl'))
  np.testing.assert_allclose(
      plan['lr'](np.array([1, 6250, 12_500, 62_500])),
      [4.5258e-7, 2.82865e-3, 5.65685e-3, 3.31999e-3], rtol=2e-5)
  np.testing.assert_allclose(plan['lr'](124_999), 1e-6, rtol=1e-3)
  np.testing.assert_allclose(plan['weight_decay'](62_500), 0.22)
  np.testing.assert_allclose(plan['momentum'](62_500), 0.996)
  np.testing.assert_allclose(plan['teacher_temperature'](37_499), 0.07)


def test_vit7b_spot_values():
  plan = schedules(load('vit7b'))
  np.testing.assert_allclose(
      plan['lr'](np.array([1, 99_999, 100_000, 999_999])),
      [4e-9, 3.99996e-4, 4e-4, 4e-4], rtol=1e-6)
  assert plan['last_layer_lr'](4999) == 0 < plan['last_layer_lr'](5000)
  assert plan['momentum'](500_000) == 0.994


def test_vit7b_gram_is_the_resumed_stage_counted_from_zero():
  s = load('vit7b_gram')
  plan = schedules(s)
  at = np.array([0, 500, 999, 1000, 199_999])  # of the reference: + 1,000,000
  np.testing.assert_allclose(
      plan['gram_weight'](at) * s.gram.loss_weight,
      [0, 1.00157, 2, 2, 2], atol=1e-5)
  np.testing.assert_allclose(
      plan['dino_local_weight'](at), [1, 0.749607, 0.5, 0.5, 0.5], atol=1e-6)
  np.testing.assert_allclose(plan['momentum'](at), 0.999)
  np.testing.assert_allclose(plan['teacher_temperature'](at), 0.07)
  assert (s.crops.global_px, s.crops.local_px, s.gram_px) == (256, 112, 512)
  assert renewed(s) == [10_000, 20_000, 30_000]
  assert s.init.part == 'both'


def renewed(s):
  """After how many steps the Gram teacher is renewed."""
  length = lambda d: d.steps(
      batch_size=s.train.batch_size, epoch_steps=s.train.epoch_steps)
  first, every = length(s.gram.refresh_start), length(s.gram.refresh_every)
  done = [n for n in range(every, steps(s) + 1, every) if n >= first]
  return done[:s.gram.max_refreshes]


def test_vit7b_highres_sizes_and_weights():
  s = load('vit7b_highres')
  plan = schedules(s)
  np.testing.assert_allclose(plan['lr'](0), 0)
  np.testing.assert_allclose(plan['lr'](9999), 7.07107e-5, rtol=1e-5)
  np.testing.assert_allclose(plan['dino_local_weight'](0), 0.5)
  np.testing.assert_allclose(plan['gram_weight'](0) * s.gram.loss_weight, 1.5)
  patches = [tuple(px // 16 for px in entry[:3]) for entry in s.crops.sizes]
  assert patches == [(32, 7, 48), (48, 7, 72), (48, 10, 72), (48, 14, 72),
                     (48, 21, 72)]
  assert [entry[3] for entry in s.crops.sizes] == [.3, .3, .3, .05, .05]
  assert (s.koleo.group_images, s.train.group_images) == (16, 8)
  assert s.gram.refresh_every is None and s.init.part == 'ema'


def test_vit7b_stages_share_optimizer_model_and_heads():
  first, *others = [
      load(name) for name in ('vit7b', 'vit7b_gram', 'vit7b_highres')]
  assert first.optimizer.clip_norm == 30 and first.optimizer.beta2 == 0.99
  for s in others:
    assert (s.optimizer, s.dino, s.ibot) == (
        first.optimizer, first.dino, first.ibot)
    np.testing.assert_allclose(schedules(s)['weight_decay'](0), 0.04)
    assert s.model.embed_dim == 4096
    assert schedules(s)['last_layer_lr'](1) > 0


@pytest.mark.parametrize('name, arg, dino, ibot', [
    ('vitl', '', 65536, 65536), ('vitl', 'v3', 65536, 65536),
    ('vitl14', '', 131072, 131072), ('vitg', '', 131072, 131072),
    ('vit7b', '', 262144, 98304), ('vit7b_distill', '', 262144, 98304),
    ('convnext_distill', '', 262144, 98304)])
def test_prototypes(name, arg, dino, ibot):
  s = load(name, arg)
  assert (s.dino.num_prototypes, s.ibot.num_prototypes) == (dino, ibot)


def head_elements(sizes, embed_dim):
  s = settings_lib.read(importlib.import_module(
      'configs.demo').get_config())
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    method = method_lib.resolve(s, 'cpu')
    config = network.NetworkConfig(
        backbone=method.model, dino_head=sizes, ibot_head=None)
    shapes = network.Functional(
        lambda rngs: network.Network(config, rngs=rngs), mesh).shapes
  count = tree.num_elements(shapes['dino_head'])
  # The first layer reads the backbone, here that of the demo.
  return count + (embed_dim - method.model.embed_dim) * sizes.hidden_dim


@pytest.mark.parametrize('name, arg, head, embed_dim, count', [
    ('vitl', '', 'dino', 1024, 23_662_848),
    ('vit7b', '', 'dino', 4096, 239_092_224),
    ('vit7b', '', 'ibot', 4096, 72_884_608)])
def test_heads_have_the_published_number_of_parameters(
    name, arg, head, embed_dim, count):
  sizes = getattr(load(name, arg), head).head
  assert head_elements(sizes, embed_dim) == count


def test_vitl14_is_the_trained_shape_not_the_released_one():
  s = load('vitl14')
  assert (s.model.ffn, s.model.ffn_hidden) == ('swiglu', 2736)
  assert s.ibot.separate_head and s.optimizer.layerwise_decay == 1
  assert (s.dino.bottleneck_dim, s.ibot.bottleneck_dim) == (384, 256)
  assert s.num_patches == 256 and s.teacher.centering == 'sinkhorn_knopp'


@pytest.mark.parametrize('size', ['s', 'b', 'l', 'l_swiglu', 'g'])
def test_dinov2_highres_compresses_the_schedules(size):
  s = load('vitg_highres', size)
  plan, first = schedules(s), schedules(load('vitg'))
  assert steps(s) == 10_000 and s.num_patches == 37 ** 2
  long, short = np.array([100_000, 200_000, 400_000]), np.array([1600, 3200,
                                                                 6400])
  for name in ('weight_decay', 'momentum', 'teacher_temperature'):
    np.testing.assert_allclose(
        plan[name](short), first[name](long), rtol=1e-4)
  ratio = plan['lr'](1600) / first['lr'](100_000)
  np.testing.assert_allclose(ratio, 7.07e-5 / 4e-4)


def test_distilled_students_have_the_teachers_prototypes():
  for name, arg in (('vit7b_distill', ''), ('vit7b_distill', 'late'),
                    ('convnext_distill', ''), ('vitg_distill', '')):
    s = load(name, arg)
    teacher = load('vitg' if name == 'vitg_distill' else 'vit7b')
    for student in s.each.values():
      for head in ('dino', 'ibot'):
        student_head, given = getattr(student, head), getattr(teacher, head)
        assert student_head.num_prototypes == given.num_prototypes
        sizes = getattr(s.distillation, head)
        assert (sizes.hidden_dim, sizes.bottleneck_dim, sizes.weight_norm) == (
            given.hidden_dim, given.bottleneck_dim, given.weight_norm)
      assert not getattr(student.model, 'drop_path_rate', 0)


def test_five_students_learn_by_default_or_one():
  s = load('vit7b_distill')
  assert set(s.students) == {
      'vits16', 'vits16plus', 'vitb16', 'vitl16', 'convnext_tiny'}
  # The teacher and ViTs see half of 512 pixels: as many patches as positions.
  assert s.crops.global_px == 512 and s.num_patches == 16 ** 2
  student = load('vit7b_distill', 'vits16')
  assert not student.students and student.model.embed_dim == 384
  assert student.crops.global_px == 256 and student.num_patches == 16 ** 2
  assert student.optimizer == s.students['vits16'].optimizer
  assert student.optimizer.layerwise_decay == 0.99
  assert s.students['convnext_tiny'].optimizer.layerwise_decay == 1


@pytest.mark.parametrize('size, first', [
    ('tiny', 0.04), ('small', 0.04), ('base', 0.02), ('large', 0.04)])
def test_convnext_schedules(size, first):
  together = load('convnext_distill').students[f'convnext_{size}']
  alone = load('convnext_distill', size)
  at = np.array([0, 312_500, 625_000])
  for s in (together, alone):
    plan = schedules(s)
    np.testing.assert_allclose(
        plan['weight_decay'](at), [first, (first + 0.2) / 2, 0.2])
    np.testing.assert_allclose(plan['momentum'](at), [0.994, 0.997, 1])
    np.testing.assert_allclose(
        plan['teacher_temperature'](np.array([0, 150_000])), [0.04, 0.07])
    np.testing.assert_allclose(plan['lr'](at[[0, 2]]), [1e-6, 8e-6])
    assert s.dino.hidden_dim == s.ibot.hidden_dim == 2048


def test_late_distillation_is_the_published_file():
  s = load('vit7b_distill', 'late')
  plan = schedules(s)
  np.testing.assert_allclose(plan['lr'](12_499), 2.63391e-4, rtol=1e-5)
  np.testing.assert_allclose(plan['momentum'](np.array([0, 24_999])),
                             [0.994, 1.0])
  np.testing.assert_allclose(plan['teacher_temperature'](0), 0.07)
  assert (s.crops.global_px, s.crops.local_px) == (256, 112)
  assert s.distillation.patches == 'masked' and not s.distillation.hide_masked
  assert s.crops.flip_probability == 0
  # The images of a GPU: 1920 on 48, 48, 80 and 120 of them.
  assert {name: student.koleo.group_images
          for name, student in s.students.items()} == {
              'vits16': 40, 'vits16plus': 40, 'vitb16': 24, 'vitl16': 16}
  assert load('vit7b_distill', 'late,vits16').koleo.group_images == 40


@pytest.mark.parametrize('name, arg, images', [
    ('vit7b', '', 16), ('vit7b_gram', '', 16), ('vit7b_highres', '', 8),
    ('vit7b_distill', '', 128), ('vit7b_distill', 'late', 30),
    ('convnext_distill', '', 128), ('vitl', 'v3', 64), ('vitl', '', 64)])
def test_masks_are_spread_over_the_images_of_a_gpu(name, arg, images):
  s = load(name, arg)
  group = s.train.group_images
  assert masking.num_groups(group, s.masks) * group == images


def test_dinov2_distils_every_patch_of_whole_images():
  s = load('vitg_distill')
  assert set(s.students) == {'s', 'b', 'l'}
  assert s.distillation.patches == 'all' and not s.distillation.hide_masked


@pytest.mark.parametrize('size', ['s', 'b', 'l'])
def test_gram_comes_within_one_run(size):
  s = load('vitl_gram', size)
  plan = schedules(s)
  start = s.gram.start.steps(
      batch_size=s.train.batch_size, epoch_steps=s.train.epoch_steps)
  assert (start, steps(s)) == (87_500, 125_000)
  np.testing.assert_allclose(
      plan['gram_weight'](np.array([start, start + 1249])), [0, 2])
  np.testing.assert_allclose(
      plan['dino_local_weight'](np.array([start, start + 1249])), [1, 0.5])
  np.testing.assert_allclose(
      plan['lr'](start) / plan['lr'](12_500), 0.25, atol=1e-3)
  assert renewed(s) == [90_000, 92_500, 95_000]
  assert s.gram_px == 2 * s.crops.global_px


def test_satellite_colours_and_norms():
  s = load('vitl_satellite')
  assert s.augment.mean == (0.430, 0.411, 0.296)
  assert s.augment.std == (0.213, 0.156, 0.143)
  assert s.model.untie_global_and_local_cls_norm


def test_an_unknown_word_is_answered():
  with pytest.raises(
      errors.UserError, match="'vitx16' is not .*: did you mean vits16"):
    load('vit7b_distill', 'vitx16')
