"""Published heads of depth and segmentation at full size, by shapes alone."""

import jax
import pytest

from dinojax.interop import translate
from dinojax.interop.heads import dpt as tables
from dinojax.interop.heads import linear
from dinojax.models.dense import dpt
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import depth
from dinojax.probes.tasks import segment


def conv(name, *shape, bias=True):
  return {f'{name}.weight': shape} | ({f'{name}.bias': shape[:1]} if bias
                                      else {})


def norm(name, width):
  return {f'{name}.{part}': (width,) for part in (
      'weight', 'bias', 'running_mean', 'running_var')}


def dpt_file(width, projected, channels, *, readout, bins, hidden=32,
             normed=False, biased=False, last=True, prefix=''):
  """Tensors of a file as they are described for the release."""
  out, part = {}, 'reassemble_blocks'
  for i, each in enumerate(projected):
    out |= conv(f'{part}.projects.{i}.conv', each, width, 1, 1)
    if readout == 'project':
      out |= {f'{part}.readout_projects.{i}.0.weight': (width, 2 * width),
              f'{part}.readout_projects.{i}.0.bias': (width,)}
    if normed:
      out |= norm(f'{part}.batchnorm_layers.{i}', width)
    out |= conv(f'convs.{i}.conv', channels, each, 3, 3, bias=False)
    for u in (1, 2) if i else (2,):
      for n in (1, 2):
        out |= conv(f'fusion_blocks.{i}.res_conv_unit{u}.conv{n}.conv',
                    channels, channels, 3, 3, bias=biased)
    out |= conv(f'fusion_blocks.{i}.project.conv', channels, channels, 1, 1)
  for i, side in ((0, 4), (1, 2), (3, 3)):
    out |= conv(f'{part}.resize_layers.{i}', projected[i], projected[i], side,
                side)
  if last:
    out |= conv('project.conv', channels, channels, 3, 3)
  for n, (outputs, inputs, side) in {
      0: (channels // 2, channels, 3), 2: (hidden, channels // 2, 3),
      4: (bins, hidden, 1)}.items():
    out |= conv(f'conv_depth.head.{n}', outputs, inputs, side, side)
  return {prefix + name: shape for name, shape in out.items()}


DPT = {  # width of the backbone, and what differs
    'v2 giant': (1536, dpt.Config(
        channels=256, projected=(192, 384, 768, 1536), num_outputs=1,
        readout='project'), dict(readout='project', bins=1)),
    'synthmix 7B': (4096, dpt.Config(
        channels=512, projected=(2048,) * 4, num_outputs=256,
        readout='ignore', norm=True), dict(
            readout='ignore', bins=256, normed=True)),
    'canopies': (1024, dpt.Config(
        channels=256, projected=(128, 256, 512, 1024), num_outputs=256,
        readout='project', hidden=128, bias=True, projects=False), dict(
            readout='project', bins=256, hidden=128, biased=True, last=False))}


@pytest.mark.parametrize('name', DPT)
def test_dpt_files_have_these_tensors(name):
  width, config, values = DPT[name]
  task = depth.DptDepth(head=config, layers=(0, 1, 2, 3))
  shapes = head_lib.shapes_of(task, (width,) * 4)
  got = translate.key_shapes(tables.table(config, tables.META), shapes)
  assert got == dpt_file(width, config.projected, config.channels, **values)
  millions = sum(x.size for x in jax.tree.leaves(shapes['params'])) / 1e6
  low, high = {'v2 giant': (60, 75), 'synthmix 7B': (225, 235),
               'canopies': (20, 40)}[name]
  assert low < millions < high


@pytest.mark.parametrize('kind, task, want', [
    ('depth_v2', depth.Depth(
        num_outputs=256, width=8 * 1536, cls=True, norm=False,
        layers=(9, 19, 29, 39), place='raw'),
     conv('conv_depth', 256, 8 * 1536, 1, 1)),
    ('depth_v2', depth.Depth(
        num_outputs=256, width=2 * 1536, cls=True, norm=False, place='raw'),
     conv('conv_depth', 256, 2 * 1536, 1, 1)),
    ('depth_v3', depth.Depth(num_outputs=256, width=4096),
     conv('conv_depth', 256, 4096, 1, 1) | norm('batchnorm_layer', 4096)),
    ('segmentation_v2', segment.Segment(
        num_outputs=150, width=4 * 1536, layers=4),
     conv('conv_seg', 150, 4 * 1536, 1, 1) | norm('bn', 4 * 1536)),
    ('segmentation_v3', segment.Segment(num_outputs=150, width=4096),
     conv('conv', 150, 4096, 1, 1) | norm('batchnorm_layer', 4096))])
def test_linear_files_have_these_tensors(kind, task, want):
  layers = next(iter(task.choices.values())).layers
  count = layers if isinstance(layers, int) else len(layers)
  widths = (task.width // count // (1 + task.joins_cls),) * count
  shapes = head_lib.shapes_of(task, widths)
  assert translate.key_shapes(
      linear.table(linear.NAMES[kind]), shapes) == want
