"""The sections of a config, one dataclass each; `settings` joins them."""

import dataclasses

from dinojax.core import config as config_lib
from dinojax.models import heads

Duration = config_lib.Duration
free = config_lib.free

# The sections that one of several students has of its own.
OWN = ('model', 'dino', 'ibot', 'koleo', 'optimizer', 'schedules', 'train',
       'init')


@dataclasses.dataclass(frozen=True)
class Data:
  """Where images come from; several sources are (spec, weight) pairs."""

  train: str | tuple
  # (spec, probability): whole batches from one source, DINOv3's ImageNet.
  homogeneous: tuple = ()
  validation: str | None = None
  max_bad_fraction: float = 0.01
  max_pixels: int = 178_956_970
  num_workers: int = free(0)
  num_threads: int = free(2)

  @property
  def mixture(self) -> tuple[tuple[str, float], ...]:
    """The training sources with their weights."""
    if isinstance(self.train, str):
      return ((self.train, 1.0),)
    return tuple((spec, float(weight)) for spec, weight in self.train)


@dataclasses.dataclass(frozen=True)
class Head:
  """A loss on prototypes and the head it reads."""

  loss_weight: float = 1.0
  num_prototypes: int = 65536
  hidden_dim: int = 2048
  bottleneck_dim: int = 256
  num_layers: int = 3
  weight_norm: bool = False
  student_temperature: float = 0.1

  @property
  def head(self) -> heads.HeadConfig:
    """The sizes of the head."""
    names = {f.name for f in dataclasses.fields(heads.HeadConfig)}
    values = {f.name: getattr(self, f.name)
              for f in dataclasses.fields(self) if f.name in names}
    return heads.HeadConfig(**values)


@dataclasses.dataclass(frozen=True)
class Dino(Head):
  """Cross-entropy of CLS tokens between crops."""

  ignore_diagonal: bool = True  # a global crop is not compared with itself


@dataclasses.dataclass(frozen=True)
class Ibot(Head):
  """Cross-entropy of masked patches."""

  separate_head: bool = True


@dataclasses.dataclass(frozen=True)
class Koleo:
  """Spread of the CLS features; groups may span devices."""

  loss_weight: float = 0.1
  group_images: int = 2
  topk: int = 1


@dataclasses.dataclass(frozen=True)
class Gram:
  """Patch similarities are held to those of a teacher; 0: they are not.

  The teacher is a backbone of its own ('frozen'), which sees the global crops
  undistorted at crops.gram_px pixels, or the EMA teacher itself ('ema'). Its
  own backbone comes from `source`, or is the EMA teacher of step `start`, and
  may be renewed from the EMA teacher at times. Nothing of it runs before.
  """

  loss_weight: float = 0.0  # times schedules.gram_weight
  teacher: str = 'frozen'
  source: str | None = None  # as init.source
  start: Duration = Duration(0, 'steps')
  normalize: bool = True
  per_image: bool = True
  remove_negative: bool = False
  remove_only_teacher_negative: bool = False
  tokens: str = 'all'  # or 'masked' or 'unmasked'
  antialias: bool = False  # of the resize to the student's grid
  log_masked: bool = False  # also the loss of hidden and of seen patches
  refresh_every: Duration | None = None
  refresh_start: Duration = Duration(0, 'steps')
  max_refreshes: int | None = None

  @property
  def has_backbone(self) -> bool:
    """Whether a backbone of its own is part of the state."""
    return self.loss_weight > 0 and self.teacher == 'frozen'


@dataclasses.dataclass(frozen=True)
class Teacher:
  """How teacher logits become targets."""

  centering: str = 'sinkhorn_knopp'  # or 'softmax'
  num_iterations: int = 3
  center_momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW and its per-layer factors."""

  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float | None = 3.0  # backbone and each head separately
  layerwise_decay: float = 1.0
  patch_embed_lr_factor: float = 0.2


@dataclasses.dataclass(frozen=True)
class Curve:
  """A schedule: warm-up from start to peak, then cosine to end."""

  start: float
  peak: float
  end: float
  warmup: Duration = Duration(0, 'steps')
  cosine: Duration | None = None  # None: the rest of training


@dataclasses.dataclass(frozen=True)
class Schedules:
  """What changes over training; `style` decides endpoints (see schedules)."""

  lr: Curve
  weight_decay: Curve
  momentum: Curve
  teacher_temperature: Curve
  dino_local_weight: Curve = Curve(1.0, 1.0, 1.0)
  gram_weight: Curve = Curve(1.0, 1.0, 1.0)
  freeze_last_layer: Duration = Duration(0, 'steps')
  lr_rule: str = 'sqrt_1024'
  style: str = 'v2'  # or 'v3'


@dataclasses.dataclass(frozen=True)
class Train:
  """Length, batch and groups."""

  batch_size: int
  total: Duration
  share: float = 1.0  # of the batch, that one of several students learns from
  epoch_steps: int | None = None  # None: one pass over the training images
  group_images: int = 2
  num_micro_batches: int = 1
  max_nonfinite_steps: int = 3
  deterministic: bool = True
  check_memory: bool = free(True)  # stops before a step that cannot fit


@dataclasses.dataclass(frozen=True)
class Init:
  """What the weights of a new run start from; without `source`, random ones.

  The teacher starts from the same. Heads that the source lacks, or whose
  sizes differ, are random: they want a backbone that waits for them.
  """

  source: str | None = None  # a run's workdir, or what dinojax.load takes
  part: str = 'ema'  # of a run; 'student', or 'both': each from its own
  heads: bool = True  # those of the source too, where it has them
  freeze_backbone: Duration = Duration(0, 'steps')
  max_knn_drop: float | None = None  # points below the start that end a run


@dataclasses.dataclass(frozen=True)
class HeadSizes:
  """Of a head whose prototypes and loss another section has."""

  hidden_dim: int = 2048
  bottleneck_dim: int = 256
  num_layers: int = 3
  weight_norm: bool = False


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A network that is given and stays as it is teaches; without, the EMA.

  It needs heads with as many prototypes as the student's: of a run, or of a
  run that trained new ones on a frozen backbone (init.freeze_backbone).
  """

  source: str | None = None  # as init.source
  # What the source is, so that a config can be planned without it: a name of
  # models.zoo and the heads; None: read from the source.
  model: str | None = None
  dino: HeadSizes = HeadSizes()
  ibot: HeadSizes = HeadSizes()
  patches: str = 'masked'  # whose targets iBOT predicts; or 'all'
  hide_masked: bool = False  # from the student

  @property
  def is_on(self) -> bool:
    """Whether another network than the EMA teaches."""
    return self.source is not None or self.model is not None


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: parameters are split over fsdp, replicated over data."""

  data: int = -1
  fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When the state is saved and how much of it is kept."""

  every: Duration = Duration(1000, 'steps')
  keep: int = 2
  archive_every: Duration | None = None


@dataclasses.dataclass(frozen=True)
class Log:
  """When a row of metrics is written."""

  every_steps: int = 10
  tensorboard: bool = True
  profile_start: int | None = None  # step at which a trace begins
  profile_steps: int = 5


@dataclasses.dataclass(frozen=True)
class Knn:
  """k-NN of the EMA teacher, while training and at the end."""

  every: Duration | None = None
  k: int = 20
  temperature: float = 0.07
  train: str | None = None  # None: data.train
  validation: str | None = None  # None: data.validation
  max_train_images: int = 50_000
  max_validation_images: int = 10_000
  resize_px: int = 256
  crop_px: int = 224
  batch_size: int = 64
