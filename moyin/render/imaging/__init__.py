"""Conversion of tenants' pictures, in processes with bounds of memory and time."""

from __future__ import annotations

from moyin.render.imaging.converter import Converted, PictureConverter
from moyin.render.imaging.processes import Bounds, PictureProcesses

__all__ = ["Bounds", "Converted", "PictureConverter", "PictureProcesses"]
