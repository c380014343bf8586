"""Tiles that the preset "auto" chooses for the latents of well-known models: `python -m bench.presets`."""

import noisetilt_kernels as nt
from noisetilt_kernels.config import describe, sample_of

LATENTS = {
    "FLUX.1, 512 x 512": (16, 64, 64),
    "FLUX.1, 1024 x 1024": (16, 128, 128),
    "FLUX.1, 1360 x 768": (16, 96, 170),
    "Qwen-Image, 1328 x 1328": (16, 166, 166),
    "Wan2.1, 81 x 480 x 832": (1, 16, 21, 60, 104),
    "Wan2.1, 81 x 720 x 1280": (1, 16, 21, 90, 160),
    "SDXL, 1024 x 1024": (4, 128, 128),
    "SANA, 1024 x 1024": (32, 32, 32),
    "`digits`": (4, 16, 16),
    "flat, 65,536 values": (65536,),
}


def table() -> str:
    """Markdown table of the resolved presets."""
    lines = ["| latents | shape | chunk sizes | tiles | mixing domains |", "|---|---|---|---|---|"]
    for name, shape in LATENTS.items():
        config = nt.preset("auto", shape)
        parts = describe(config, sample_of("presets", shape)).split("; ")
        cells = [part.partition(" ")[2] for part in parts]
        lines.append(f"| {name} | {'x'.join(map(str, shape))} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
