"""`dinojax compile`: the step's needs, without the machine."""

import json

import jax
import jax.numpy as jnp
import pytest

from dinojax import plan
from dinojax.core import errors
from dinojax.models import network
from dinojax.models import vit
from dinojax.models import zoo
from dinojax.parallel import mesh as mesh_lib
from dinojax.train import flops
from tests.train import tiny


def test_flops_of_published_models():
  # timm's model cards: thousand millions of multiply-adds at 518 pixels;
  # they count norms, too.
  for name, published in (('dinov2_vits14', 46.8), ('dinov2_vitb14', 151.7),
                          ('dinov2_vitg14', 1784.2)):
    count = flops.backbone(zoo.vit_config(name), 1, 518)
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
    counted = run.lower(model.shapes, rows).compile().cost_analysis()['flops']
  # It counts norms, softmax and activations too.
  assert 0.85 < flops.backbone(config, 4, 64) / counted < 1.0


def test_the_plan_of_a_small_step():
  config = tiny.config(train__batch_size=16)
  config['mesh'] = dict(data=2, fsdp=4)
  found = plan.compiled(config, 'cpu:8')
  assert found['devices'] == 8 and found['images_per_step'] == 16
  assert found['peak_gib'] > 0 and found['model_flops_per_step'] > 0
  kinds = {name.split()[0] for name in found['collectives']}
  assert {'all-gather', 'reduce-scatter'} <= kinds
  assert 'all-to-all' not in kinds
  gathers = sum(x['count'] for name, x in found['collectives'].items()
                if name.startswith('all-gather'))
  assert gathers >= tiny.config()['model']['depth']
  text = plan.table(found)
  assert '8 devices (data 2 × fsdp 4)' in text and 'all-gather' in text
  assert json.loads(json.dumps(found)) == found


def test_least_times_follow_the_chip():
  found = {'topology': 'v5e:4x4', 'devices': 16,
           'model_flops_per_step': 16 * 197e12,
           'collectives': {'all-gather bf16': {'sent_bytes': 100e9}}}
  assert plan.bounds(found) == {
      'hbm_gib': 16, 'matrix_s': 1.0, 'link_s': 0.5}


@pytest.mark.parametrize('topology', ['v9x:4x4', 'gpu:8', 'v5e'])
def test_unknown_topologies_answer_in_a_sentence(topology):
  with pytest.raises(errors.UserError, match='v5e|libtpu'):
    plan.devices(topology)
