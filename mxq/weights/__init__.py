"""What changes weights before they are quantized. The kernels find each channel's scale from its largest weight."""

from mxq.weights.clip import Asked, channel_bounds, clip_weights

__all__ = ["Asked", "channel_bounds", "clip_weights"]
