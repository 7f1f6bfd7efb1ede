"""Data sets, the input pipeline, and the augmentation that runs on the device."""
