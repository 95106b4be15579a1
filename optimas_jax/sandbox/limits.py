"""What a program may use."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits for one program; all are above 0.

    Attributes:
      seconds: wall-clock time of the program, in seconds.
      cpu_seconds: CPU time of each process, in seconds.
      memory_mb: address space of each process, and memory of all processes together, in MB.
      file_mb: size of one file, in MB.
      disk_mb: size of all files together, in MB.
      processes: number of processes and threads.
      output_bytes: bytes of standard output and error, together, that are kept; the rest is read and dropped.
    """

    seconds: float = 240.0
    cpu_seconds: int = 60
    memory_mb: int = 4096
    file_mb: int = 64
    disk_mb: int = 256
    processes: int = 64
    output_bytes: int = 20_000

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in dataclasses.asdict(self).items() if not value > 0}
        if wrong:
            raise ValueError(
                f"limits are above 0, got {', '.join(f'{name} = {value}' for name, value in wrong.items())}"
            )
