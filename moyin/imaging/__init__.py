"""Conversion of tenants' pictures, in processes with bounds of memory and time."""

from __future__ import annotations

from moyin.imaging.converter import Converted, PictureConverter
from moyin.imaging.processes import Bounds, PictureProcesses

__all__ = ["Bounds", "Converted", "PictureConverter", "PictureProcesses"]
