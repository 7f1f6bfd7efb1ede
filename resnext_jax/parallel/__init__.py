"""Devices and hosts: the mesh, connecting processes, and what they tell each other."""
