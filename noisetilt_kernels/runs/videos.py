"""Video files and film strips."""

import importlib.util
import io
from pathlib import Path

from PIL import Image
from torch import Tensor

STRIP = 6
"""Number of frames on a film strip."""


def check_available() -> None:
    """Raise ImportError unless PyAV is installed, which writes videos."""
    if importlib.util.find_spec("av") is None:
        raise ImportError('videos need av: pip install "noisetilt-kernels[video]"')


def to_frames(video: Tensor) -> Tensor:
    """Convert a video (3, F, H, W) with values in [0, 1] to uint8 (F, H, W, 3) on the CPU. NaN becomes 0."""
    return (video.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0)


def mp4(video: Tensor, fps: int) -> bytes:
    """Return a video (3, F, H, W) with values in [0, 1] as the bytes of an MP4 file (H.264).

    H.264 halves the resolution of colours in both directions, so H and W must be even. The loss is hardly
    visible.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt = "yuv420p"
        for frame in to_frames(video):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def check_mp4(path: Path) -> None:
    """Raise an error unless an MP4 file has frames. A file that was cut has no table of its frames."""
    import av

    with av.open(path) as container:
        if not container.streams.video[0].frames:
            raise ValueError("it has no frames")


def film_strip(video: Tensor) -> Image.Image:
    """Return up to `STRIP` frames of a video (3, F, H, W) side by side, with the first and the last frame."""
    frames = to_frames(video)
    count = min(STRIP, len(frames))
    chosen = [round(index * (len(frames) - 1) / max(count - 1, 1)) for index in range(count)]
    height, width = frames.shape[1:3]
    strip = Image.new("RGB", (count * width, height))
    for place, index in enumerate(chosen):
        strip.paste(Image.fromarray(frames[index].contiguous().numpy()), (place * width, 0))
    return strip
