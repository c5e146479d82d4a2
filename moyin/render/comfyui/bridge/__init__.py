"""A node package that Moyin adds to ComfyUI; `ProcessFolder` copies it into custom_nodes.

Licence: this package is Apache-2.0 like the rest of Moyin. It runs inside ComfyUI, which is
GPL-3.0; the combination in that process is under the GPL-3.0, with which Apache-2.0 is compatible.
Nothing else of Moyin is loaded there, and nothing of ComfyUI is loaded into Moyin.
"""
