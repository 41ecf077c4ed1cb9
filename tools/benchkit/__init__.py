"""Measurements of Scoria beside stock cinder-volume 29, in a lab of tools/labkit."""
