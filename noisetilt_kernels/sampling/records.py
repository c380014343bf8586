"""What happened at each step to each particle, and its file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class StepRecord:
    """One step of one particle. What a method does not compute is None."""

    method: str
    particle: int
    step: int
    """From 0. The last record of a particle holds the reward of its finished image."""
    t: float
    """Time at which the step starts, from 1 (noise) to 0; 1 throughout for one-step models."""
    reward: float | None = None
    """Of the image decoded from x0_hat at t (svdd: of the chosen candidate, at the time where the step ends)."""
    gradient_norm: float | None = None
    """Euclidean norm of the gradient of the reward in x_t."""
    cosine: float | None = None
    """Between that gradient and what the operator made of it."""
    seconds_model: float = 0.0
    """In the model, forward and backward; the particle's share of its micro-batch, as the next two."""
    seconds_reward: float = 0.0
    """Decoding and reward, forward and backward."""
    seconds_whitening: float = 0.0
    fallback: str | None = None
    """Why the step was left unguided for this particle, where it was."""

    def to_json(self) -> str:
        """One line of strict JSON, without the newline; NaN and infinity become null."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return json.dumps(values, allow_nan=False)


class RecordWriter:
    """Writes records as JSON lines, `with RecordWriter(path) as writer: ntrk(..., options=SamplerOptions(on_record=writer.write))`.

    Every line is handed to the operating system at once and in one piece, so that after a crash the file
    holds whole lines, of everything that was recorded. An existing file is continued.

    Args:
        path: the file; its folder must exist.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("ab")  # noqa: SIM115  (closed by close)

    def write(self, record: StepRecord) -> None:
        """Append one line."""
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()  # a raw write may be cut short, on a full disk, and say nothing

    def close(self) -> None:
        """Close the file; twice is once."""
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
