"""Contains the node package that Moyin adds to ComfyUI; `ProcessFolder` copies the package.

The package has the licence of Moyin, Apache-2.0. In ComfyUI's process the combination is under
ComfyUI's licence, GPL-3.0, with which Apache-2.0 is compatible. ComfyUI's process loads nothing else
of Moyin, and Moyin's processes load nothing of ComfyUI.
"""
