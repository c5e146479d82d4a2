"""Contains the node package that Moyin adds to ComfyUI; `ProcessFolder` copies the package.

The package has the licence of Moyin, Apache-2.0, which is compatible with the GPL-3.0 of ComfyUI, so
that the combination in ComfyUI's process is under the GPL-3.0. ComfyUI's process loads nothing else
of Moyin, and Moyin's processes load nothing of ComfyUI.
"""
