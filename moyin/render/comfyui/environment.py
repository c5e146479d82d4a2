"""Selects the environment variables of a ComfyUI process by an allow list.

The stack's own environment contains secrets that a ComfyUI process must not get, such as the keys
of back ends, Ray's token and addresses with passwords.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.system.processes import SERVICE_VARIABLE, STACK_VARIABLE

_ALLOWED_NAMES = frozenset(
    {
        # `moyin down` finds the processes of its stack by these variables.
        *(SERVICE_VARIABLE, STACK_VARIABLE),
        *("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH"),
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "GPU_DEVICE_ORDINAL", "SSL_CERT_FILE"),
        *("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
    }
)
# Variables of locales, GPU drivers, math libraries and PyTorch.
_ALLOWED_PREFIXES = (
    *("LC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "HSA_", "ROCR_", "ROCM_", "AMD_"),
    *("MIOPEN_", "ZE_", "ONEAPI_", "SYCL_", "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_"),
)
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
# ComfyUI's interpreter must not load the packages of this interpreter.
_INTERPRETER_NAMES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_USER = "comfyui"


def build_child_environment(
    environ: Mapping[str, str], options: ComfyOptions, scratch_folder: Path
) -> dict[str, str]:
    """Return the environment of a ComfyUI process.

    Without isolation, it has all but a few variables of ``environ``. Otherwise it has only the
    allowed variables.

    Args:
        scratch_folder: the folder for temporary files, which ``TMPDIR`` names.
    """
    if options.isolation is Isolation.OFF:
        env = {name: value for name, value in environ.items() if name not in _INTERPRETER_NAMES}
    else:
        env = {name: value for name, value in environ.items() if _is_allowed(name)}
        env |= {name: environ[name] for name in options.environment if name in environ}
        # PyTorch names its caches after the user, and fails without a name.
        env |= {"HOME": str(scratch_folder), "USER": _USER, "LOGNAME": _USER}
    env |= {
        "TMPDIR": str(scratch_folder),
        "MOYIN_GPU_SHARE": str(options.share),
        "PYTHONUNBUFFERED": "1",
    }
    return env


def _is_allowed(name: str) -> bool:
    if any(word in name for word in _SECRET_WORDS):
        return False
    return name in _ALLOWED_NAMES or name.startswith(_ALLOWED_PREFIXES)
