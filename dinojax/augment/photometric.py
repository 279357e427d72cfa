"""placeholder"""
import dataclasses
@dataclasses.dataclass(frozen=True)
class Photometric:
  jitter_probability: float = 0.8
