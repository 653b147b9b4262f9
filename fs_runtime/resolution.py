"""How many pixels of an image are read, where the model leaves it open."""

DEFAULT_MAX_PIXELS = 1280 * 28 * 28
"""1,280 tokens of Qwen2-VL, about a megapixel. Published checkpoints allow twelve times as many; what is kept of one
image in flight would then take gigabytes."""
