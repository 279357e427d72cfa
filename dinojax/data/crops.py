"""placeholder"""
import dataclasses
@dataclasses.dataclass(frozen=True)
class Crops:
  global_px: int = 224
  global_scale: tuple[float, float] = (0.32, 1.0)
  num_global: int = 2
  local_px: int = 96
  local_scale: tuple[float, float] = (0.05, 0.32)
  num_local: int = 8
  ratio: tuple[float, float] = (3/4, 4/3)
  flip_probability: float = 0.5
