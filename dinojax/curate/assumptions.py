"""Assumptions of a plan, on images and on machines."""

import dataclasses

from dinojax.core import fields


@dataclasses.dataclass(frozen=True)
class Settings:
  """Assumptions of `--plan`; none of them changes what a stage does."""

  image_kb: fields.Above0 = 100.0  # Mean size of an encoded image.
  image_mpx: fields.Above0 = 0.5  # Mean megapixels of an image.
  # Part of the images that each stage which drops some leaves.
  kept: fields.Part = 0.9
  queries: fields.Positive = 20_000_000  # Images of all sets of retrieval.
  references: fields.Positive = 2_000_000  # Images of all benchmarks.
  # Architecture of a described or embedding model, where `model:` names files.
  architecture: str = 'dinov2_vitl14'
  utilization: fields.Part = 0.4  # Part of an accelerator's peak that is used.
  cores_per_chip: fields.Positive = 16  # Cores of the hosts, for each chip.
  chips_per_host: fields.Positive = 8  # Chips of a machine: k-means has one.
  disk_gb_s: fields.Above0 = 10.0  # Of the storage, read and written.
