"""tfds builders that prepare their data sets without TensorFlow."""
