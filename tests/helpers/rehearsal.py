"""Run of `bench/gpu.sh` whose steps are other programs: `python rehearsal.py RUN OUT PROGRAMS`.

PROGRAMS is JSON: the Python text of each step by its name; all others run "". The time limits stay.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.gpu import run


def main() -> int:
    name, out, programs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    real = run.RUNS[name]

    def steps(folder: Path) -> list[run.Step]:
        return [
            replace(step, command=("python", "-c", programs.get(step.name, "")), library=None)
            for step in real.steps(folder)
        ]

    run.RUNS[name] = replace(real, steps=steps)
    return int(not run.perform(name, out))


if __name__ == "__main__":
    sys.exit(main())
