"""Writes a package of misbehaving ComfyUI nodes, and a script for the frontend."""

from __future__ import annotations

from pathlib import Path

NAME = "bad-nodes"
SCRIPT = 'window.saidByANodePackage = "hello";\n'
_NODES = """
import gc
import json
import os
import time

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from PIL import Image

WEB_DIRECTORY = "./web"

class Stuck:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "run", "test"
    def run(self):
        time.sleep(120)

class Die(Stuck):
    def run(self):
        raise SystemExit

class Crash(Stuck):
    def run(self):
        os._exit(3)

class Greedy(Stuck):
    left = 0
    def run(self):
        Greedy.left -= 1
        if Greedy.left >= 0:
            raise torch.OutOfMemoryError("no room")
        return {"ui": {"text": ["fits"]}}

class Room(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"failures": ("INT", {"default": 1})}})
    def run(self, failures):
        Greedy.left = failures
        return {}

class Hungry(Stuck):
    tries = 0
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "share": ("FLOAT", {"default": 1.0}), "model_name": ("STRING", {"default": ""}),
    }})
    def run(self, share, model_name):
        Hungry.tries += 1
        if float(os.environ["MOYIN_GPU_SHARE"]) < share:
            raise torch.OutOfMemoryError("no room")
        return {"ui": {"text": ["fits"]}}

class Tries(Stuck):
    def run(self):
        return {"ui": {"text": [str(Hungry.tries)]}}

class Where(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"seconds": ("FLOAT", {"default": 0.0})}})
    def run(self, seconds):
        time.sleep(seconds)
        # When the process started. Its id is another outside of its sandbox.
        with open("/proc/self/stat") as stat:
            return {"ui": {"text": [stat.read().rpartition(")")[2].split()[19]]}}

class Rests(Stuck):
    def run(self):
        return {"ui": {"text": [str(gc.get_freeze_count())]}}

class Latest(Stuck):
    file_info = {"filename": "latest.txt", "subfolder": "", "type": "output"}
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"default": ""})}})
    def run(self, text):
        path = os.path.join(folder_paths.get_output_directory(), self.file_info["filename"])
        with open(path, "w") as file:
            file.write(text)
        return {"ui": {"files": [self.file_info]}}

class Reads(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"default": ""})}})
    def run(self, text):
        with open(os.path.abspath(text)) as file:
            return {"ui": {"text": [file.read()]}}

class Previews(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"count": ("INT", {"default": 1})}})
    def run(self, count):
        bar = comfy.utils.ProgressBar(count)
        for number in range(count):
            picture = Image.new("RGB", (64, 48), (250, number % 256, 0))
            bar.update_absolute(number, count, ("JPEG", picture, None))
            time.sleep(0.3)
        return {"ui": {"text": ["done"]}}

class Any(str):
    def __ne__(self, other):
        return False

class Links(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "text": ("STRING", {"default": ""}), "target": ("STRING", {"default": ""}),
    }})
    def run(self, text, target):
        for folder in (folder_paths.get_input_directory(), folder_paths.get_output_directory()):
            path = os.path.join(folder, text)
            if not os.path.lexists(path):
                os.symlink(bytes.fromhex(target).decode(), path)
        return {"ui": {"text": [text]}}

class Says(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {"multiline": True})}})
    RETURN_TYPES, OUTPUT_NODE = (Any("*"),), False
    def run(self, text):
        return (text,)

class Expands(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "kind": ("STRING", {"multiline": True}), "values": ("STRING", {"multiline": True}),
    }})
    RETURN_TYPES, OUTPUT_NODE = (Any("*"),), False
    def run(self, kind, values):
        graph = {"x": {"class_type": kind, "inputs": json.loads(values)}}
        return {"result": (["x", 0],), "expand": graph}

class Busy(Stuck):
    INPUT_TYPES = classmethod(lambda cls: {"required": {
        "image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0}),
        "fails": ("BOOLEAN", {"default": False}),
    }})
    RETURN_TYPES, OUTPUT_NODE = ("IMAGE",), False
    def run(self, image, seconds, fails):
        until = time.time() + seconds
        while (now := time.time()) < until:
            print(f"\\nbusy {now:.3f}", flush=True)
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(min(0.1, until - now))
        if fails:
            raise ValueError("it had to fail")
        return (image,)

NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        Stuck, Die, Crash, Greedy, Room, Hungry, Tries, Where, Rests, Latest, Reads, Links, Says, Expands,
        Previews,
        Busy,
    )
}
"""


def write_nodes(folder: Path) -> Path:
    """Write the node package below ``folder``, and return the package's folder.

    The node classes:

    - ``Stuck`` sleeps for two minutes.
    - ``Die`` ends the thread that executes prompts.
    - ``Crash`` ends the ComfyUI process.
    - ``Greedy`` runs out of memory as often as ``Room`` has set, and then succeeds.
    - ``Room`` sets how often ``Greedy`` runs out of memory.
    - ``Hungry`` runs out of memory if the process may use less than ``share`` of a card.
    - ``Tries`` returns how often ``Hungry`` was executed in this process.
    - ``Where`` sleeps, and returns when the process started, which identifies the process.
    - ``Rests`` returns the number of objects that garbage collection skips.
    - ``Latest`` writes its text to a file with a constant name, and always returns the same object.
    - ``Reads`` returns the content of a file, opened by its absolute path.
    - ``Previews`` sends three red preview pictures per second.
    - ``Links`` creates symbolic links to ``target``, a path in hexadecimal digits.
    - ``Says`` returns its text as a value that is valid for any input.
    - ``Expands`` replaces itself by a node of any class with any inputs.
    - ``Busy`` works for some seconds and logs ten times per second; `tests.chaos.busy` reads the log.
    """
    package = folder / NAME
    (package / "web").mkdir(parents=True)
    (package / "__init__.py").write_text(_NODES)
    (package / "web" / "hello.js").write_text(SCRIPT)
    return package
