"""Image processors of Hugging Face that use PIL, under their names in every supported version of transformers."""

try:
    from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil
except ImportError:  # transformers 5.0 has them without the ending
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil
    from transformers import Qwen2VLImageProcessor as Qwen2VLImageProcessorPil

__all__ = ["CLIPImageProcessorPil", "Qwen2VLImageProcessorPil"]
