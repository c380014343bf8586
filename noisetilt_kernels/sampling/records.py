"""Records of the steps of every particle, and their file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, get_args, get_type_hints

from ..checks import json_fields


@dataclass(frozen=True)
class StepRecord:
    """One step of one particle. A value that the method does not compute at this step is None."""

    method: str
    """Name of the sampler."""
    particle: int
    """Number of the particle."""
    step: int
    """Number of the step, from 0. The last record of a particle holds the reward of its finished image."""
    t: float
    """Time at which the step starts, from 1 (noise) to 0. One-step models have 1 throughout."""
    reward: float | None = None
    """Reward of the image decoded from x0_hat at t; for svdd and rbf, of the chosen draw at the end; of
    weighted copies, of the one that would be the answer."""
    gradient_norm: float | None = None
    """Euclidean norm of the gradient of the reward in x_t."""
    cosine: float | None = None
    """Cosine between that gradient and the noise that the operator made from it."""
    seconds_model: float = 0.0
    """Seconds in the model, forward and backward: the particle's equal share of its micro-batch."""
    seconds_reward: float = 0.0
    """Seconds in decoder and reward, forward and backward: the particle's equal share."""
    seconds_whitening: float = 0.0
    """Seconds in the operator: the particle's equal share."""
    fallback: str | None = None
    """Reason why the particle was left unguided at this step, or None."""
    noise_peak: float | None = None
    """Peak of the noise of all steps together, in the last record of a steered particle; see
    `typicality.spectral_peaks`. About 1 for noise that is not steered."""
    ess: float | None = None
    """Effective sample size of the particle's weighted copies, from 1 to K, before they are resampled."""
    acceptance: float | None = None
    """Share of the particle's chains that moved to the proposals made here, see `starts.PCNL`."""

    def to_json(self) -> str:
        """Return one line of strict JSON, without the newline. NaN and infinity become null."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def from_json(line: str | bytes) -> "StepRecord":
        """Return the record of a line from `to_json`.

        Raises:
            ValueError: the line does not describe a record.
        """
        return StepRecord(**json_fields(line, _KINDS))


def _json_types(hint: Any) -> tuple[type, ...]:
    """Return the types of a JSON value that stands for a value of a type such as `float | None`."""
    types = get_args(hint) or (hint,)
    return (*types, int) if float in types else types


_KINDS = {name: _json_types(hint) for name, hint in get_type_hints(StepRecord).items()}
"""JSON types of the fields of a `StepRecord`."""


class RecordWriter:
    """Writer of records as JSON lines.

        with RecordWriter(path) as writer:
            ntrk(model, reward, prompts, options=SamplerOptions(on_record=writer.write))

    Each line is passed to the operating system immediately, in one piece. After a crash the file holds
    whole lines of all records so far. Lines are appended to an existing file.

    Args:
        path: file to write; its folder must exist.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("ab")  # noqa: SIM115  (closed by close)

    def write(self, record: StepRecord) -> None:
        """Append one line."""
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()  # an unbuffered write may be cut short on a full disk, without an error

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
