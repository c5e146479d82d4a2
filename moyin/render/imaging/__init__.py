"""Converts pictures and videos of tenants in processes with limited memory and time."""

from __future__ import annotations

from moyin.render.imaging.converter import ConvertedPicture, PictureConverter
from moyin.render.imaging.processes import PictureLimits, PictureProcesses

__all__ = ["ConvertedPicture", "PictureConverter", "PictureLimits", "PictureProcesses"]
