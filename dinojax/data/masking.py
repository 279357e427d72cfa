"""placeholder"""
import dataclasses
@dataclasses.dataclass(frozen=True)
class Masks:
  probability: float = 0.5
  ratio: tuple[float, float] = (0.1, 0.5)
  counts: str = 'exact'
  circular_shift: bool = False
