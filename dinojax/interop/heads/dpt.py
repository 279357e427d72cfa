"""DPT heads of DINOv2, DINOv3 and transformers, by the names of their tensors.

A head is {'params': …, 'stats': …}, see models.dense.dpt.
"""

import dataclasses

from dinojax.interop import names
from dinojax.models.dense import dpt


@dataclasses.dataclass(frozen=True)
class DptNames:
  """Words of a family of files; {i} is a level, {n} a number from 1 on.

  Levels of `fusion` and `unit` count from the coarsest map.
  """

  project: str
  resize: str
  readout: str
  norm: str | None
  conv: str
  fusion: str
  unit: str
  last: str
  head: str
  prefix: str = ''


META = DptNames(
    project='reassemble_blocks.projects.{i}.conv',
    resize='reassemble_blocks.resize_layers.{i}',
    readout='reassemble_blocks.readout_projects.{i}.0',
    norm='reassemble_blocks.batchnorm_layers.{i}', conv='convs.{i}.conv',
    fusion='fusion_blocks.{i}.project.conv',
    unit='fusion_blocks.{i}.res_conv_unit{u}.conv{n}.conv',
    last='project.conv', head='conv_depth.head.{n}')
META_V2 = dataclasses.replace(META, prefix='decode_head.')
HF_CHM = DptNames(
    project='reassemble_stage.layers.{i}.projection',
    resize='reassemble_stage.layers.{i}.resize',
    readout='reassemble_stage.readout_projects.{i}.0', norm=None,
    conv='convs.{i}', fusion='fusion_layers.{i}.projection',
    unit='fusion_layers.{i}.residual_layer{u}.convolution{n}',
    last='project', head='conv_depth.head.{n}', prefix='head.')
HF_DPT = DptNames(
    project='neck.reassemble_stage.layers.{i}.projection',
    resize='neck.reassemble_stage.layers.{i}.resize',
    readout='neck.reassemble_stage.readout_projects.{i}.0', norm=None,
    conv='neck.convs.{i}', fusion='neck.fusion_stage.layers.{i}.projection',
    unit='neck.fusion_stage.layers.{i}.residual_layer{u}.convolution{n}',
    last='head.projection', head='head.head.{n}')
# Weights of HF's coarsest fusion that its network never uses.
HF_UNUSED = tuple(f'neck.fusion_stage.layers.0.residual_layer1.{name}.weight'
                  for name in ('convolution1', 'convolution2'))


def table(config: dpt.Config, words: DptNames = META) -> names.Table:
  """Rules for every tensor of a head.

  Args:
    config: sizes.
    words: names of a family of files.
  """
  out: names.Table = []
  for i in range(dpt.LEVELS):
    part = f'params/reassemble/{i}'
    out += names.pair(f'{part}/project', words.project.format(i=i), names.CONV)
    if config.readout == 'project':
      out += names.pair(f'{part}/readout', words.readout.format(i=i))
    if config.norm:
      out += names.batch_norm(f'{part}/norm', f'stats/{i}',
                              words.norm.format(i=i))
    if i != 2:
      out += names.pair(f'{part}/resize', words.resize.format(i=i),
                   names.CONV if i == 3 else names.TRANSPOSED)
    out += names.pair(f'params/convs/{i}', words.conv.format(i=i), names.CONV,
                 bias=False)
    fusion = f'params/fusion/{i}'
    out += names.pair(f'{fusion}/project', words.fusion.format(i=i), names.CONV)
    for unit in (1, 2) if i else (2,):
      for n in (1, 2):
        out += names.pair(f'{fusion}/unit{unit}/conv{n}', words.unit.format(
            i=i, u=unit, n=n), names.CONV, bias=config.bias)
  if config.projects:
    out += names.pair('params/project', words.last, names.CONV)
  for i in range(3):
    out += names.pair(f'params/head/conv{i}', words.head.format(n=2 * i),
                 names.CONV)
  return [dataclasses.replace(rule, keys=tuple(
      words.prefix + key for key in rule.keys)) for rule in out]
