"""Devices and hosts: the mesh, connections between processes, and communication."""
