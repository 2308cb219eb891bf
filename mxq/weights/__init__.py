"""What changes weights before they are quantized. The kernels find each channel's scale from its largest weight."""
