"""The sections of a config, one dataclass each; `settings` joins them."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Annotated, Any, Literal

from dinojax.augment import photometric
from dinojax.core import config as config_lib
from dinojax.core import fields
from dinojax.data import crops
from dinojax.data import curated
from dinojax.data import masking
from dinojax.models import families
from dinojax.train.objectives import dino
from dinojax.train.objectives import gram as gram_lib
from dinojax.train.objectives import ibot
from dinojax.train.objectives import koleo
from dinojax.train.objectives import objective

Duration = config_lib.Duration
free = config_lib.free

# The name of a student that is alone.
ALONE = 'student'


@dataclasses.dataclass(frozen=True)
class Data:
  """Where images come from; several sources are (spec, weight) pairs."""

  # Training images: folder:DIR, arrayrecord:GLOB, tfds:NAME/SPLIT,
  # photos:train, patterns:train, curated:DIR of `dinojax curate`, or several:
  # (("folder:A",2.0),…).
  train: str | tuple[tuple[str, fields.Above0], ...]
  # Sources of whole batches, (spec, probability) each: DINOv3's ImageNet.
  homogeneous: tuple[tuple[str, fields.Unit], ...] = ()
  # Labelled images on which k-NN is measured; None: it is not.
  validation: str | None = None
  # Share of images that may be unreadable before the run stops.
  max_bad_fraction: fields.Part = 0.01
  max_pixels: fields.Positive = 178_956_970  # Pixels of the largest image read.
  # Black and white of greys of more than 8 bits, (black, white); (): 0 to
  # 65535, floats 0 to 1.
  value_range: tuple[float, ...] = ()
  # Goes on with other images than the run began with.
  accept_changes: bool = free(False)
  # Processes that decode images; 0: threads of this one.
  num_workers: fields.Natural = free(0)
  num_threads: fields.Positive = free(2)  # Threads that decode in each process.

  @property
  def mixture(self) -> tuple[tuple[str, float], ...]:
    """The training sources with their weights, those of curated sets too."""
    return self._expanded[0]

  @property
  def whole_batches(self) -> tuple[tuple[str, float], ...]:
    """Sources of whole batches with their probabilities, likewise."""
    return self._expanded[1]

  @functools.cached_property
  def _expanded(self) -> tuple:
    train = (((self.train, 1.0),) if isinstance(self.train, str)
             else self.train)
    return curated.expand(train, self.homogeneous)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """How teacher logits become targets."""

  # How targets are balanced over prototypes.
  centering: Literal['sinkhorn_knopp', 'softmax'] = 'sinkhorn_knopp'
  num_iterations: fields.Natural = 3  # Iterations of Sinkhorn-Knopp.
  center_momentum: fields.Unit = 0.9  # Momentum of the centre of softmax.


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW and its per-layer factors."""

  beta1: fields.BelowOne = 0.9  # Decay of the mean of gradients.
  beta2: fields.BelowOne = 0.999  # Decay of the mean of their squares.
  epsilon: fields.Above0 = 1e-8  # Added to the root of the latter.
  # Largest norm of gradients, backbone and each head apart; None: no limit.
  clip_norm: fields.Above0 | None = 3.0
  # Factor of the learning rate from one block to the one before it.
  layerwise_decay: fields.Above0 = 1.0
  # Factor of the learning rate of the patch embedding.
  patch_embed_lr_factor: fields.NonNegative = 0.2


@dataclasses.dataclass(frozen=True)
class Curve:
  """A schedule: warm-up from start to peak, then cosine to end."""

  start: fields.NonNegative  # Value at the first step.
  peak: fields.NonNegative  # Value after the warm-up.
  end: fields.NonNegative  # Value at the end of the cosine.
  warmup: Duration = Duration(0, 'steps')  # Length from start to peak, linear.
  # Length from peak to end; None: the rest of training.
  cosine: Duration | None = None


@dataclasses.dataclass(frozen=True)
class Schedules:
  """Values that change over training; `style` sets endpoints, see schedules."""

  lr: Curve  # Learning rate, before lr_rule.
  weight_decay: Curve  # Weight decay of AdamW.
  momentum: Curve  # Momentum of the EMA teacher.
  teacher_temperature: Curve  # Divisor of the teacher's logits.
  # Factor of the DINO loss of local crops.
  dino_local_weight: Curve = Curve(1.0, 1.0, 1.0)
  gram_weight: Curve = Curve(1.0, 1.0, 1.0)  # Factor of gram.loss_weight.
  # Time for which the prototypes do not learn.
  freeze_last_layer: Duration = Duration(0, 'steps')
  # How the learning rate grows with the batch: by the square root of
  # batch/1024, four times that, batch/256, or not.
  lr_rule: Literal['none', 'sqrt_1024', 'sqrt_1024_x4',
                   'linear_256'] = 'sqrt_1024'
  # Form of the curves: DINOv2's, or DINOv3's, whose cosines may end early.
  style: Literal['v2', 'v3'] = 'v2'
  # Part by which cosines of style v2 are longer than training, and cut there.
  trunc_extra: fields.NonNegative = 0.0


@dataclasses.dataclass(frozen=True)
class Train:
  """Length, batch and groups."""

  batch_size: fields.Positive  # Images of a step, on all devices together.
  total: Duration  # Length of training.
  # Share of the batch that one of several students learns from.
  share: fields.Part = 1.0
  # Steps of an epoch; None: one pass over the training images.
  epoch_steps: fields.Positive | None = None
  # Images that share masks, dropped paths and softmax centres, as those of a
  # GPU did; must divide the images that a device takes at a time. None: the
  # largest divisor of a micro-batch up to max_group_images.
  group_images: fields.Positive | None = None
  max_group_images: fields.Positive = free(32)  # Bound of group_images=None.
  # Parts of a batch taken one after the other, their gradients added:
  # gradient accumulation.
  num_micro_batches: fields.Positive = 1
  # Steps in a row without a finite loss before the run stops.
  max_nonfinite_steps: fields.Positive = 3
  # On a GPU, only operations that give the same bits at every run.
  # CPUs and TPUs have no others.
  deterministic: bool = free(False)
  # Stops before a step is compiled that cannot fit into memory.
  check_memory: bool = free(True)


@dataclasses.dataclass(frozen=True)
class Init:
  """Weights that a new run starts from; without `source`, random ones.

  The teacher starts from the same. Heads that the source lacks, or whose
  sizes differ, are random: freeze_backbone lets them learn first.
  """

  # Weights to start from: a run's workdir, or what dinojax.load takes; None:
  # random ones.
  source: str | None = None
  # Network of a run that is taken; both: student and EMA each from its own.
  part: Literal['ema', 'student', 'both'] = 'ema'
  heads: bool = True  # Heads of the source too, where it has them.
  # Time for which only the heads learn.
  freeze_backbone: Duration = Duration(0, 'steps')
  # Points of k-NN below the start that end the run; None: none do.
  max_knn_drop: fields.NonNegative | None = None


@dataclasses.dataclass(frozen=True)
class HeadSizes:
  """A head whose prototypes and loss another section has."""

  hidden_dim: fields.Positive = 2048  # Width of the head's hidden layers.
  bottleneck_dim: fields.Positive = 256  # Width before the prototypes.
  num_layers: fields.Positive = 3  # Layers of the head's MLP.
  weight_norm: bool = False  # Learned norms of prototypes, as DINOv2 has them.


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A network that is given and stays as it is teaches; without, the EMA.

  It needs heads with as many prototypes as the student's: of a run, or of a
  run that trained new ones on a frozen backbone (init.freeze_backbone).
  """

  source: str | None = None  # Weights of the frozen teacher, as init.source.
  # Published name of the teacher's model, such as dinov2_vitg14, to plan a
  # run without its weights; None: read from the source.
  model: str | None = None
  dino: HeadSizes = HeadSizes()  # Head of the teacher for CLS tokens.
  ibot: HeadSizes = HeadSizes()  # Head of the teacher for patches.
  patches: Literal['masked', 'all'] = 'masked'  # Patches that iBOT predicts.
  hide_masked: bool = False  # Hides masked patches from the student.

  @property
  def is_on(self) -> bool:
    """True if a frozen network teaches in place of the EMA."""
    return self.source is not None or self.model is not None


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: parameters are split over fsdp, replicated over data."""

  # Copies of the parameters; -1: as many as devices allow.
  data: Annotated[int, fields.Range(-1, fields.LARGEST)] = -1
  # Devices that a copy is split over; -1: all.
  fsdp: Annotated[int, fields.Range(-1, fields.LARGEST)] = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When the state is saved and how much of it is kept."""

  every: Duration = Duration(1000, 'steps')  # Time between two saves.
  keep: fields.Positive = 2  # Checkpoints that are kept.
  # Time between checkpoints that are kept for ever; None: none are.
  archive_every: Duration | None = None
  # Keeps the checkpoint of the best k-NN too; knn.every must be a multiple of
  # checkpoint.every.
  keep_best: bool = False


@dataclasses.dataclass(frozen=True)
class Export:
  """The EMA for others, in WORKDIR/export, when training ends."""

  # Writes weights with their config, which dinojax.load reads, and a model
  # card.
  weights: bool = True
  # Writes formats of other libraries too, such as hf,meta; see `dinojax convert
  # export`.
  formats: str = ''


@dataclasses.dataclass(frozen=True)
class Report:
  """The report of a run, one HTML file."""

  at_end: bool = True  # Writes WORKDIR/report.html when training ends.
  # Images whose patches are compared at every evaluation; 0: none are.
  patch_images: fields.Natural = 8


@dataclasses.dataclass(frozen=True)
class Log:
  """When a row of metrics is written."""

  every_steps: fields.Positive = 10  # Steps between two rows of metrics.
  tensorboard: bool = True  # Also for TensorBoard, where it is installed.
  trackers: str = ''  # Also for any of wandb, trackio, mlflow: wandb,mlflow.
  # Step at which a profile begins; None: none is made.
  profile_start: fields.Natural | None = None
  profile_steps: fields.Positive = 5  # Steps of the profile.


@dataclasses.dataclass(frozen=True)
class Knn:
  """k-NN of the EMA teacher, while training and at the end."""

  every: Duration | None = None  # Time between two; None: only at the end.
  k: fields.Positive = 20  # Neighbours that vote.
  temperature: fields.Above0 = 0.07  # Divisor of similarities in the vote.
  train: str | None = None  # Images with labels; None: data.train.
  validation: str | None = None  # Images to classify; None: data.validation.
  max_train_images: fields.Positive = 50_000  # Images with labels used.
  max_validation_images: fields.Positive = 10_000  # Images classified.
  resize_px: fields.Positive = 256  # Short side after resizing, in pixels.
  crop_px: fields.Positive = 224  # Side of the centre that is seen, in pixels.
  batch_size: fields.Positive = 64  # Images at a time.


@dataclasses.dataclass(frozen=True)
class Settings:
  """A whole config; a section that is an `Objective` is a term of the loss."""

  model: families.Config  # Backbone that is trained.
  data: Data  # Where images come from.
  crops: crops.Crops  # Crops that are cut out of an image.
  masks: masking.Masks  # Patches that the student does not see.
  augment: photometric.Photometric  # Changes of colour and sharpness.
  dino: dino.Dino  # Loss of CLS tokens between crops, and its head.
  ibot: ibot.Ibot  # Loss of masked patches, and its head.
  koleo: koleo.Koleo  # Loss that spreads CLS features.
  teacher: Teacher  # How the teacher's logits become targets.
  optimizer: Optimizer  # AdamW and its factors by layer.
  schedules: Schedules  # Values that change over training.
  train: Train  # Length, batch and groups.
  mesh: Mesh = free(Mesh())  # How devices are used.
  # When the state is saved.
  checkpoint: Checkpoint = free(Checkpoint())
  log: Log = free(Log())  # When a row of metrics is written.
  knn: Knn = free(Knn())  # How k-NN is measured.
  # Protocols that are measured with k-NN, by name: their sections, see
  # docs/evaluate.md, with every_steps, a multiple of knn.every_steps.
  evals: Mapping[str, Any] = dataclasses.field(
      default_factory=dict, metadata={'free': True})
  export: Export = free(Export())  # Weights that are written for others.
  report: Report = free(Report())  # A page that shows the run.
  gram: gram_lib.Gram = gram_lib.Gram()  # Loss that anchors patch features.
  init: Init = Init()  # Weights that a new run starts from.
  # A frozen network as the teacher, instead of the EMA.
  distillation: Distillation = Distillation()
  # Start of all random numbers.
  seed: Annotated[int, fields.Range(0, fields.LARGEST)] = 0
  # Several students by name, of one frozen teacher: what differs from this
  # config, whose own model has the largest patches and is not trained.
  students: Mapping[str, 'Settings'] = dataclasses.field(
      default_factory=dict, metadata={'free': True})

  @classmethod
  def terms(cls) -> tuple[str, ...]:
    """The sections that are terms of the loss, in the order of their sum."""
    return tuple(
        field.name for field in dataclasses.fields(cls)
        if isinstance(field.type, type)
        and issubclass(field.type, objective.Objective))

  @classmethod
  def own_sections(cls) -> tuple[str, ...]:
    """The sections that one of several students has of its own."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    terms = (name for name in cls.terms() if kinds[name].PER_STUDENT)
    return ('model', *terms, 'optimizer', 'schedules', 'train', 'init')

  @property
  def objectives(self) -> tuple[objective.Objective, ...]:
    """The terms of the loss that take part."""
    terms = (getattr(self, name) for name in self.terms())
    return tuple(term for term in terms if term.is_on)

  @property
  def images_together(self) -> int:
    """Images that a device, or a micro-batch of all, may not divide."""
    return math.lcm(*(term.images_together() for student in self.each.values()
                      for term in student.objectives))

  @property
  def num_patches(self) -> int:
    """Patches of a global crop."""
    rows, columns = self.model.grid((self.crops.global_px,) * 2)
    return rows * columns

  @property
  def chosen(self) -> masking.Masks | None:
    """Masks of the patches that iBOT predicts; None: it is off."""
    if not self.ibot.is_on:
      return None
    if self.distillation.is_on and self.distillation.patches == 'all':
      return masking.Masks(probability=1.0, ratio=(1.0, 1.0))
    return self.masks

  @property
  def gram_px(self) -> int | None:
    """Side of the Gram teacher's crops; None: there are none."""
    if not self.gram.has_backbone:
      return None
    return self.crops.gram_px or self.crops.global_px

  @property
  def made_crops(self) -> crops.Crops:
    """The crops that are made: those of a Gram teacher where it sees its own.
    """
    sizes = tuple((*entry[:2], self.of_size(i).gram_px, entry[3])
                  for i, entry in enumerate(self.crops.sizes))
    return dataclasses.replace(self.crops, gram_px=self.gram_px, sizes=sizes)

  @property
  def each(self) -> Mapping[str, 'Settings']:
    """The students by name; one alone is ALONE."""
    return self.students or {ALONE: self}

  def of_size(self, index: int) -> 'Settings':
    """As the steps run that draw this one of crops.sizes."""
    return dataclasses.replace(
        self, crops=self.crops.of_size(index), students={
            name: s.of_size(index) for name, s in self.students.items()})
