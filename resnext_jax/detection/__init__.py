"""Detection: Faster R-CNN with a ResNet or ResNeXt backbone (paper Sec. 5.4)."""
