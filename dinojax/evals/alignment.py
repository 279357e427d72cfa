"""Text alignment: the config of a training, its batches and its task."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import numpy as np

from dinojax.core import config as config_lib
from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import paths
from dinojax.data import captions as captions_lib
from dinojax.data import crops
from dinojax.data import images
from dinojax.data import tokenizers
from dinojax.engine import schedules
from dinojax.features import backbone as backbone_lib
from dinojax.models.text import tower
from dinojax.models.text import vision_head
from dinojax.parallel import mesh as mesh_lib
from dinojax.probes.tasks import align
from dinojax.probes.tasks import dense
from dinojax.train import sections
from dinojax.train import settings as settings_lib

SECTION = settings_lib.ALIGNMENT  # of no config of pretraining
LEARNED = 'train'  # a tokenizer that is learned from the captions
free = config_lib.free
Duration = config_lib.Duration


@dataclasses.dataclass(frozen=True)
class Data:
  """Where images and their captions come from."""

  # Images with captions: csv:FILE, coco:FILE.json, tar:GLOB, parquet:GLOB,
  # img2dataset:DIR; with ?empty=skip those without a caption are left out.
  train: str
  # Images with captions that are held out; None: retrieval is not measured.
  validation: str | None = None
  # Share of images that may be unreadable before the run stops.
  max_bad_fraction: fields.Part = 0.01
  max_pixels: fields.Positive = images.DEFAULT_MAX_PIXELS  # Largest image.
  # Goes on with other images than the run began with.
  accept_changes: bool = free(False)
  # Processes that decode images; 0: threads of this one.
  num_workers: fields.Natural = free(0)
  num_threads: fields.Positive = free(2)  # Threads that decode in each process.


@dataclasses.dataclass(frozen=True)
class Crops:
  """How an image is cut in training."""

  px: fields.Positive = 224  # Side of the square, whole patches.
  scale: tuple[fields.Part, fields.Part] = (0.08, 1.0)  # Parts of the area.
  # Probability of a mirror image, in which left and right are not as the
  # caption says; the reference has 0.5.
  flip: fields.Unit = 0.5


@dataclasses.dataclass(frozen=True)
class Text:
  """The text tower, and how texts become ids."""

  # Vocabulary: clip:FILE, json:FILE of the library tokenizers, or train: one
  # is learned from the captions.
  tokenizer: str = LEARNED
  num_ids: fields.Positive = 8192  # Ids of a vocabulary that is learned.
  context: fields.Positive = 77  # Ids of a text; longer ones are cut.
  width: fields.Positive = 1280  # Width of tokens.
  depth: fields.Positive = 24  # Blocks.
  num_heads: fields.Positive = 20  # Heads of attention.
  dropout: fields.BelowOne = 0.0  # Share of values dropped before the blocks.


@dataclasses.dataclass(frozen=True)
class Vision:
  """The vision head on the frozen backbone."""

  depth: fields.Natural = 2  # Blocks; 0: the tokens are pooled as they are.
  use_cls: bool = True  # CLS is a part of the embedding.
  use_patches: bool = True  # Pooled patches are a part of it.
  pooling: Literal['mean', 'max', 'gem'] = 'mean'  # How patches are pooled.
  # Width of the embedding of an image and of a text; None: of the tokens that
  # it is made of, without a matrix.
  embed_dim: fields.Positive | None = None
  drop_path_rate: fields.BelowOne = 0.3  # Share of rows that skip a branch.
  # Weight of the loss that keeps the likeness of patches; 0: there is none.
  gram_weight: fields.NonNegative = 0.0
  gram_share: fields.Part = 0.5  # Share of the patches that it compares.
  gram_normalize: bool = False  # Compares cosines, else products.


@dataclasses.dataclass(frozen=True)
class Alignment:
  """Backbone, length and rates of a training."""

  backbone: str  # Weights that dinojax.load takes, which stay as they are.
  batch_size: fields.Positive = 8192  # Images of a step, on all devices.
  total: Duration = Duration(50_000, 'steps')  # Length of training.
  learning_rate: fields.Above0 = 7e-4  # At its highest; it ends at 0.
  warmup: Duration = Duration(2000, 'steps')  # Length until it is there.
  weight_decay: fields.NonNegative = 1e-4  # Not of norms, biases, the scale.
  beta1: fields.BelowOne = 0.9  # Decay of the mean of gradients.
  beta2: fields.BelowOne = 0.99  # Decay of the mean of their squares.
  # Largest norm of gradients; None: no limit.
  clip_norm: fields.Above0 | None = None
  # Images among which rows that skip a branch are counted; None: the largest
  # divisor of a device's images up to 256.
  group_images: fields.Positive | None = None
  dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'  # Activations.
  # Time between two measurements of retrieval; None: only at the end.
  every: Duration | None = None
  max_nonfinite_steps: fields.Positive = 3  # In a row before the run stops.


@dataclasses.dataclass(frozen=True)
class Settings:
  """The config of a training of text alignment."""

  alignment: Alignment  # Backbone, length, rates and batch.
  data: Data  # Where images and captions come from.
  crops: Crops = Crops()  # Crop that is cut out of an image.
  text: Text = Text()  # Tower of texts, and its ids.
  vision: Vision = Vision()  # Head on the frozen backbone.
  mesh: sections.Mesh = sections.Mesh()  # How devices are used.
  # When the state is saved.
  checkpoint: sections.Checkpoint = sections.Checkpoint()
  log: sections.Log = sections.Log()  # When a row of metrics is written.
  seed: fields.Natural = 11  # Start of all random numbers.


def read(config: Any) -> Settings:
  """Builds and checks a config.

  Raises:
    UserError: every mistake, each with its key, value and fix.
  """
  problems = config_lib.Errors()
  settings = config_lib.section(
      Settings, paths.expand_all(config_lib.plain(config)), path='',
      problems=problems)
  if not problems.is_readable:
    problems.raise_any()
  text, vision = settings.text, settings.vision
  problems.check(
      text.width % text.num_heads == 0,
      f'text.width={text.width} is not divisible by text.num_heads='
      f'{text.num_heads}: set text.num_heads to a divisor')
  problems.check(
      vision.use_cls or vision.use_patches,
      'vision.use_cls and vision.use_patches are both False: set one of them')
  low, high = settings.crops.scale
  problems.check(low <= high, f'crops.scale={low:g},{high:g}: give the least '
                 'part of the area first')
  if settings.checkpoint.keep_best and not settings.data.validation:
    problems.add('checkpoint.keep_best=True needs data.validation: captions '
                 'by which retrieval is measured')
  problems.raise_any()
  return settings


class Pair(NamedTuple):
  """An image and its captions."""

  image: bytes
  name: str
  captions: tuple[str, ...]


class Pairs:
  """Captions with their images as items of a training."""

  classes = ()

  def __init__(self, source: captions_lib.Captions):
    """Opens nothing."""
    self.spec, self._source = source.spec, source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Pair:
    record = self._source[int(index)]
    return Pair(record.image, record.name, tuple(self._source.of(int(index))))


@dataclasses.dataclass(frozen=True)
class Example:
  """Makes a pair ready to be learned from: a crop, and ids of a caption.

  Attributes:
    crops: how it is cut.
    tokenizer: texts to ids.
    max_pixels: pixels of the largest image that is read.
    value_range: see images.open_image.
  """

  crops: Crops
  tokenizer: tokenizers.Tokenizer
  max_pixels: int
  value_range: tuple[float, ...]

  def __call__(self, pair: Pair, rng: np.random.Generator
               ) -> dict[str, np.ndarray]:
    image = images.open_image(pair.image, max_pixels=self.max_pixels,
                              value_range=self.value_range)
    cut, = crops.multi_crop(image, rng, crops.Crops(
        global_px=self.crops.px, global_scale=self.crops.scale, num_global=1,
        num_local=0, flip_probability=self.crops.flip))['global']
    chosen = pair.captions[int(rng.integers(len(pair.captions)))]
    return {'image': cut, 'tokens': self.tokenizer.encode([chosen])[0]}


def tokenizer_of(settings: Settings, learned: str) -> tokenizers.Tokenizer:
  """The tokenizer of a config.

  Args:
    settings: the config.
    learned: file of a vocabulary that was learned from the captions.

  Raises:
    UserError: no such file, or a package is missing.
  """
  spec = settings.text.tokenizer
  if spec == LEARNED:
    spec = f'json:{learned}'
  return tokenizers.open_tokenizer(spec, settings.text.context)


def task(settings: Settings, model: backbone_lib.Backbone,
         num_ids: int) -> align.Align:
  """The task of a config for a backbone.

  Args:
    settings: the config.
    model: the backbone.
    num_ids: ids of the vocabulary.

  Raises:
    UserError: a ConvNeXt, crops that are no whole patches, groups that do not
      divide the images of a device, or widths that do not fit.
  """
  config, wanted = model.config, settings.vision
  if not config.has_attention:
    raise errors.UserError(
        f'alignment.backbone={settings.alignment.backbone} is a ConvNeXt, and '
        'the vision head attends to the tokens of a ViT: give a ViT')
  side = config.side_px
  if settings.crops.px % side:
    raise errors.UserError(
        f'crops.px={settings.crops.px} is no whole number of patches of {side} '
        f'pixels: set crops.px={max(round(settings.crops.px / side), 1) * side}'
    )
  parts = wanted.use_cls + wanted.use_patches
  width = wanted.embed_dim or parts * config.embed_dim
  options = {'dtype': settings.alignment.dtype, 'attention': 'auto'}
  platform = mesh_lib.platform(model.mesh)
  vision = vision_head.Config(
      width=config.embed_dim, num_heads=config.num_heads, depth=wanted.depth,
      embed_dim=width, use_cls=wanted.use_cls, use_patches=wanted.use_patches,
      pooling=wanted.pooling, drop_path_rate=wanted.drop_path_rate, **options
  ).for_platform(platform)
  text = tower.Config(
      width=settings.text.width, depth=settings.text.depth,
      num_heads=settings.text.num_heads, context=settings.text.context,
      dropout=settings.text.dropout, vocabulary=num_ids, embed_dim=width,
      **options).for_platform(platform)
  mistakes = [*vision.mistakes(), *text.mistakes()]
  if mistakes:
    raise errors.UserError('\n'.join(mistakes))
  return align.Align(
      text=text, vision=vision, depth=config.depth,
      pixels=dense.Pixels(model.mean, model.std, side),
      gram_weight=wanted.gram_weight, gram_share=wanted.gram_share,
      gram_normalize=wanted.gram_normalize,
      group_images=group_images(settings, model.mesh.size))


def group_images(settings: Settings, num_devices: int) -> int:
  """Images among which rows that skip a branch are counted.

  Raises:
    UserError: batches or groups that the devices cannot divide.
  """
  batch, wanted = settings.alignment.batch_size, settings.alignment.group_images
  if batch % num_devices:
    raise errors.UserError(
        f'alignment.batch_size={batch} is not divisible by {num_devices} '
        f'devices: set it to {math.ceil(batch / num_devices) * num_devices}')
  each = batch // num_devices
  if wanted is None:
    return settings_lib.largest_divisor(each, 256)
  if each % wanted:
    raise errors.UserError(
        f'alignment.group_images={wanted} does not divide the {each} images '
        f'of a device: set it to {math.gcd(each, wanted)}')
  return wanted


def schedule(total: int, warmup: int) -> schedules.WarmupCosine:
  """Factors of the learning rate, by step."""
  return schedules.linear_warmup_cosine_decay(
      0.0, 1.0, 0.0, warmup_steps=warmup, total_steps=total)
