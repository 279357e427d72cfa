"""FLOPs by formula, against published counts, the compiler and by hand."""

import jax
import jax.numpy as jnp
import pytest

from dinojax.models import heads
from dinojax.models import network
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from dinojax.planning import flops
from dinojax.planning import roofline
from dinojax.train import settings as settings_lib
from tests.train import tiny


def test_flops_of_published_models():
  # timm's model cards: thousand millions of multiply-adds at 518 pixels;
  # they count norms, too.
  for name, published in (('dinov2_vits14', 46.8), ('dinov2_vitb14', 151.7),
                          ('dinov2_vitg14', 1784.2)):
    count = zoo.vit_config(name).flops(518)
    assert count / 2e9 == pytest.approx(published, rel=5e-3), name


@pytest.mark.parametrize('config', [
    vit.ViTConfig(64, 1, 2, 8, image_px=64, attention='xla', remat='none'),
    vit.ViTConfig(64, 1, 2, 8, position='rope', num_registers=4, ffn='swiglu',
                  ffn_hidden=96, attention='xla', remat='none')])
def test_flops_of_a_forward_are_those_of_the_compiler(config):
  mesh = mesh_lib.make(devices=jax.devices()[:1])
  with mesh_lib.activate(mesh):
    model = network.Functional(lambda rngs: vit.ViT(config, rngs=rngs), mesh)
    run = jax.jit(lambda params, rows: model.apply(
        params, rows, lambda net, x: net({'global': x})['global']['cls']))
    rows = jax.device_put(
        jnp.zeros((4, 64, 64, 3)), jax.NamedSharding(mesh, mesh_lib.ROWS))
    program = run.lower(model.shapes, rows).compile()
  needed = 4 * config.flops(64)
  # It counts norms, softmax and activations too.
  assert 0.85 < needed / program.cost_analysis()['flops'] < 1.0
  assert roofline.executed(roofline.work(program.as_text())) == needed


def test_flops_of_a_step_by_hand():
  """A step of 16 images; 2 · 2 global rows a group of which 3 are kept."""
  config = tiny.config(train__batch_size=16)
  settings = settings_lib.read(config)
  d, block = 64, lambda n: 2 * n * d * (4 * d + 2 * 4 * d) + 4 * n * n * d
  embed = lambda n: 2 * n * 3 * 16 * d
  forward = lambda n, kept: 32 * (embed(n) + 4 * kept * block(1 + 2 + n))
  needed = forward(16, 1)  # teacher
  needed += 3 * forward(16, 3 / 4) - 32 * embed(16)
  needed += 3 * forward(4, 3 / 4) - 32 * embed(4)
  head = 2 * (64 * 64 + 64 * 64 + 64 * 32 + 32 * 128)
  needed += head * (3 * 64 + 32 + 4 * 100)
  assert flops.step(settings, 100) == needed
  assert heads.HeadConfig(
      num_prototypes=128, hidden_dim=64, bottleneck_dim=32
  ).flops(64, 1) == head


def test_a_ramp_of_drop_rates_saves_nothing_and_gram_costs():
  plain = flops.step(settings_lib.read(tiny.config()), 0)
  whole = flops.step(settings_lib.read(
      tiny.config(model__drop_path_rate=0.0)), 0)
  ramp = flops.step(settings_lib.read(
      tiny.config(model__drop_path_uniform=False)), 0)
  assert plain < whole == ramp
  similar = 2 * 32 * 16 * 16 * 64  # of 2 · 16 crops of 16 patches
  for teacher, extra in (('ema', 0.0), (
      'frozen', 32 * settings_lib.read(tiny.config()).model.flops(16))):
    anchored = tiny.config(gram__loss_weight=1.0, gram__teacher=teacher,
                           gram__start_steps=0 if teacher == 'ema' else 1)
    assert flops.step(settings_lib.read(anchored), 0) == (
        plain + 4 * similar + extra)
