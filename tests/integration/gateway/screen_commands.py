"""Lists the commands whose screens are captured, with placeholders such as ``{job}``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from tests.command_screens import list_commands

# Commands with their exit status. Their order matters: later ones show what earlier ones made.
COMMANDS: Sequence[tuple[str, int]] = (
    ("up", 0),
    ("status --memory", 0),
    ("doctor", 0),
    ("logs gateway -n 2", 0),
    ("logs nothing", 1),
    ("ray-env", 0),
    ("chat 'Name a colour.' --max-tokens 30", 0),
    ("chat 'Name a colour.' --model none", 1),
    ("route 'Write a sonnet about the sea.'", 0),
    ("feedback {request} --score 0.8", 0),
    ("feedback none --score 0.8", 1),
    ("models list", 0),
    ("models show auto", 0),
    ("models show none", 1),
    ("render {graph} -o {pictures}", 0),
    ("render {pictures}/none.json", 1),
    ("render --template swatch --input nothing=1 -o {pictures}", 1),
    ("templates list", 0),
    ("templates show swatch", 0),
    ("templates show none", 1),
    ("artifacts list", 0),
    ("artifacts get {file} -o {pictures}", 0),
    ("artifacts get none", 1),
    ("artifacts archive {file} -o {pictures}", 0),
    ("artifacts put {picture}", 0),
    ("artifacts link {file}", 0),
    ("artifacts delete {file}", 0),
    ("jobs list", 0),
    ("jobs show {render}", 0),
    ("jobs show {chat}", 0),
    ("jobs show {failed}", 0),
    ("jobs show {sweep}", 0),
    ("jobs show none", 1),
    ("jobs watch {chat}", 0),
    ("jobs watch {failed}", 3),
    ("jobs cancel {failed}", 1),
    ("jobs cancel --status queued --metadata screens=none --yes", 0),
    ("jobs retry {retried}", 0),
    ("jobs retry {chat}", 1),
    ("jobs delete --metadata screens={run} --dry-run", 0),
    ("jobs delete {failed}", 0),
    ("batches submit {lines} --wait", 0),
    ("batches list", 0),
    ("batches show {batch}", 0),
    ("batches watch {batch}", 0),
    ("batches results {batch}", 0),
    ("batches cancel {batch}", 1),
    ("limits set owner:studio usd_per_day=5 pools=default,large", 0),
    ("usage", 0),
    ("usage --by model --by owner --owner *", 0),
    ("usage --by moon", 1),
    ("requests --limit 5", 0),
    ("keys create --name 'Build server' --days 30", 0),
    ("keys list", 0),
    ("keys rotate {key}", 0),
    ("keys revoke {revoked}", 0),
    ("keys revoke none", 1),
    ("--profile local keys create studio-{run} --name 'For the nightly build'", 0),
    ("--profile local keys list", 0),
    ("organisations list", 0),
    ("organisations show {organisation}", 0),
    ("organisations create 'Daughters of {run}'", 0),
    ("members list --organisation {organisation}", 0),
    ("members invite ben-{run}@studio.example --organisation {organisation}", 0),
    ("members invite-again {member} --organisation {organisation}", 0),
    ("members add-service 'Build server' --organisation {organisation}", 0),
    ("members role {member} viewer --organisation {organisation}", 0),
    ("members role nobody@studio.example viewer --organisation {organisation}", 2),
    ("members disable {member} --organisation {organisation}", 0),
    ("members enable {member} --organisation {organisation}", 0),
    ("limits show owner:studio", 0),
    ("limits list", 0),
    ("limits set owner:studio usd_per_day=much", 1),
    ("limits clear owner:studio", 0),
    ("audit list --limit 3 --search {organisation}", 0),
    ("audit export --search {member}", 0),
    ("profiles list", 0),
    ("profiles use newcomer", 0),
    ("profiles use local", 0),
    ("profiles use none", 1),
    ("profiles remove spare-{run}", 0),
    ("quality show", 0),
    ("quality export", 0),
    ("quality freeze", 0),
    ("quality thaw", 0),
    ("quality reset", 0),
    ("routes secret ollama", 0),
    ("routes secret nothing", 0),
    ("migrate", 0),
    ("prune --days 36500 --yes", 0),
    ("comfyui install", 0),
    ("completion bash", 0),
    ("demo -o {pictures}", 0),
)
# Commands whose screens are captured by tests of their own.
ELSEWHERE = {"down", "deploy", "profiles add", "comfyui connect", "connect ollama"}
# Their only screen is an error: a batch that could be cancelled may have ended meanwhile.
FAILING = {"batches cancel"}
# Their JSON is an object per line.
LINES = {
    "logs", "chat", "jobs watch", "batches submit", "batches watch", "batches results",
    "audit export",
}  # fmt: skip
# What a tenant that has nothing yet sees.
EMPTY = {
    "--profile newcomer jobs list": "no jobs: `moyin render GRAPH` makes one",
    "--profile newcomer jobs list --status failed": "no jobs match",
    "--profile newcomer batches list": "no batches: `moyin batches submit FILE` makes one",
    "--profile newcomer artifacts list": "no files: renders make some, and `moyin artifacts put",
    "--profile newcomer limits list": "no limits apply to you",
    "--profile newcomer requests": "no calls",
    "--profile newcomer usage": "no calls",
    "--profile newcomer organisations list": "error: insufficient_scope",
    "--profile newcomer members list": "error: insufficient_scope",
    "--profile newcomer audit list": "error: insufficient_scope",
    "audit list --search nothing-has-this-text": "no entries match",
}
# What commands say if no stack runs.
NOT_RUNNING = {
    "status": (1, "Moyin is not running"),
    "down": (0, "Moyin was not running"),
    "deploy": (1, "error: Moyin is not running: `moyin up` starts it"),
    "jobs list": (1, "start it with `moyin up`"),
    "logs ray": (1, "error: there is no log 'ray'; available: none yet"),
    "demo": (1, "start it with `moyin up`"),
}
# Tables with their number of columns in a pipe.
TABLES = {
    "models list": 5,
    "templates list": 5,
    "jobs list": 5,
    "artifacts list": 6,
    "batches list": 6,
    "keys list": 6,
    "organisations list": 3,
    "members list --organisation {organisation}": 6,
    "audit list --limit 8": 5,
    "profiles list": 3,
}
_NAMES = sorted(filter(None, list_commands()), key=len, reverse=True)
_PROFILE = re.compile(r"^--profile \S+ ")


def find_command_name(line: str) -> str:
    """Return the full name of the command in a line, such as ``jobs list``."""
    line = f"{_PROFILE.sub('', line)} "
    return next(name for name in _NAMES if line.startswith(f"{name} "))


def fill_placeholders(line: str, values: Mapping[str, str]) -> list[str]:
    """Return the words of a line, with values in place of placeholders."""
    return [
        re.sub(r"\{(\w+)\}", lambda match: values[match[1]], word) for word in shlex.split(line)
    ]
