"""Contains the node package that Moyin adds to ComfyUI; `ProcessFolder` copies the package.

The package has the licence of Moyin, Apache-2.0. The combination with ComfyUI, in ComfyUI's process,
is under ComfyUI's GPL-3.0, with which Apache-2.0 is compatible. ComfyUI's process loads nothing else
of Moyin, and Moyin's processes load nothing of ComfyUI.
"""
