"""Tiles that the preset "auto" chooses for the latents of well-known models: `python -m bench.presets`."""

import noisetilt_kernels as nt

LATENTS = {
    "FLUX.1, 512 x 512": (16, 64, 64),
    "FLUX.1, 1024 x 1024": (16, 128, 128),
    "FLUX.1, 1360 x 768": (16, 96, 170),
    "Wan2.1, 81 x 480 x 832": (1, 16, 21, 60, 104),
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
        tiles = ", ".join(f"{th}x{tw}" for th, tw in config.tile_sizes)
        mixing = "; ".join(f"{th}x{tw} in {steps} steps" for (th, tw), steps in config.mixing)
        chunk_sizes = ", ".join(map(str, config.chunk_sizes))
        lines.append(f"| {name} | {'x'.join(map(str, shape))} | {chunk_sizes} | {tiles} | {mixing} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
