"""Heads of text alignment on disk: ours, and dino.txt of DINOv2 and DINOv3.

Ours is a folder with its vocabulary. DINOv3 has one file of both heads, DINOv2
two, FILE_VISION,FILE_TEXT; both need CLIP's vocabulary, which neither holds.
"""

import os

from etils import epath

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import output
from dinojax.core import paths
from dinojax.data import clip_words
from dinojax.data import tokenizers
from dinojax.evals import aligned
from dinojax.evals import stored_heads
from dinojax.features import backbone as backbone_lib
from dinojax.features import store as store_lib
from dinojax.interop import files
from dinojax.interop.heads import text as tables
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes import head as head_lib
from dinojax.probes.tasks import align
from dinojax.probes.tasks import dense

LEARNED = 'tokenizer.json'  # of a folder, unless it is CLIP's
EXAMPLE = ('the folder head in a run of configs/dinotxt.py, or a file of '
           'dino.txt (two of DINOv2, vision,text)')
_SCALE = 'logit_scale'
_BACKBONE = 'visual_model.backbone.'  # of files with all of a model


def save(folder: str, head: head_lib.Head, tokenizer: tokenizers.Tokenizer):
  """Writes a head and its vocabulary in the place of an existing one."""
  kind, _, file = tokenizer.spec.partition(':')
  name = LEARNED if kind == 'json' else clip_words.FILE
  head = head_lib.Head(**{**vars(head), 'facts': {
      **head.facts, 'tokenizer': f'{kind}:{name}',
      'context': tokenizer.context}})
  stored_heads.save(folder, head)
  atomic.write_bytes(epath.Path(folder) / name, epath.Path(
      paths.expand(file)).read_bytes())


def read(place: str, model: backbone_lib.Backbone,
         tokenizer: str | None = None) -> aligned.Aligned:
  """Images and texts of a head, on its backbone.

  Args:
    place: see EXAMPLE.
    model: the backbone.
    tokenizer: see tokenizers.open_tokenizer; None: that of the folder.

  Raises:
    UserError: nothing there, another head or backbone, no vocabulary.
  """
  place = paths.expand(place)
  if stored_heads.is_head(place):
    head = stored_heads.load(place)
    if head.kind != 'text':
      raise errors.UserError(
          f'{place} holds a head of {head.kind}, and texts need {EXAMPLE}')
    warning = head.check(model, store_lib.digest(model.config, model.params))
    if warning and processes.is_first():
      output.warn(warning)
    kind, _, name = str(head.facts.get('tokenizer', '')).partition(':')
    spec = tokenizer or f'{kind}:{os.path.join(place, name)}'
    return aligned.Aligned.of(model, head, tokenizers.open_tokenizer(
        spec, head.task.text.context))
  if not tokenizer:
    raise errors.UserError(
        f'{place} has no vocabulary: give tokenizer=clip:{clip_words.FILE}, '
        'a file of the wheel open_clip_torch')
  task, params = _published(place, model)
  return aligned.Aligned(model, task, params, tokenizers.open_tokenizer(
      tokenizer, task.text.context))


def _published(place: str, model: backbone_lib.Backbone
               ) -> tuple[align.Align, dict]:
  """Sizes and parameters of published files.

  Raises:
    UserError: no such file, or tensors that are none of a head's.
  """
  names = place.split(',')
  states = [{name: value for name, value in files.read(
      paths.expand(each)).items() if not name.startswith(_BACKBONE)}
            for each in names]
  config, width = model.config, model.config.embed_dim
  if len(states) == 1 and _SCALE in states[0]:
    text = tables.text_config(states[0])
    vision = tables.vision_config(states[0], width, config.num_heads)
    params = tables.from_v3(states[0], text, vision, place)
  elif len(states) == 2:
    vision_state, text_state = states
    text = tables.text_config(text_state, tables.META_V2)
    vision = tables.vision_config(
        vision_state, width, config.num_heads, tables.META_V2)
    params = tables.from_v2(
        text_state, vision_state, text, vision, (names[1], names[0]))
  else:
    raise errors.UserError(
        f'{place} is no head of text alignment: give {EXAMPLE}')
  platform = mesh_lib.platform(model.mesh)
  return align.Align(
      text=text.for_platform(platform), vision=vision.for_platform(platform),
      depth=config.depth, pixels=dense.Pixels(
          model.mean, model.std, config.side_px)), params
