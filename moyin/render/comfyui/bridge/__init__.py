"""Contains the node package that Moyin adds to ComfyUI.

`ProcessFolder` copies the package into the folder of each ComfyUI process. The package has Moyin's
licence, Apache-2.0. Inside ComfyUI's process it is combined with ComfyUI, whose licence is GPL-3.0;
the two licences are compatible. That process loads no other part of Moyin, and Moyin's own
processes load no part of ComfyUI.
"""
