# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.propagate`: an edit drawn once on the template appears in every picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gangealing_fast.commands import parse, run_command


@dataclass(frozen=True)
class PropagateConfig:
    """Carry an edit of the template to every picture of a folder, tar or MNIST file, at the pictures' own size."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape."""
    edit: tuple[str, ...]
    """A square picture with transparency, drawn over the template.png that `align` writes (any resolution). With several clusters
    one for each in order; "none" leaves a cluster's pictures as they are."""
    out: Path
    """Folder for the edited pictures and edits.jsonl."""
    opacity: float = 1.0
    """How strongly the edit covers the picture, in [0, 1], on top of its own transparency."""
    flips: bool = False
    """Without a classifier: align a picture's mirror image where that fits better (needs a flow)."""
    limit: int | None = None
    """Only the first so many pictures."""
    threads: int = 0


def main() -> None:
    config = parse(PropagateConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.propagating import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
