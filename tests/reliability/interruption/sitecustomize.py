"""Records a process's file operations, or interrupts it at a chosen one; Python imports this file before the program.

`FILE_OPERATIONS` in the environment is JSON: `under` (parts of paths whose operations count), `rank` (the value of
RANK in the process that is meant, null where it has none), and either `record` (a file that gets one line per
operation: monotonic seconds, event, path) or `operation`, `delay` in seconds, `signal`, and `target`: self, root (the
command), group (of the command, as Ctrl-C does it) or all (the command and all its descendants).
"""

import json
import os
import signal
import sys
import threading
import time

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.copyfile", "shutil.rmtree"}


def watch(wanted: dict) -> None:
    process, seen = os.getpid(), 0
    record = os.open(wanted["record"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "record" in wanted else None

    def notice(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in EVENTS or os.getpid() != process:
            return
        path = str(arguments[0])
        if not any(part in path for part in wanted["under"]):
            return
        seen += 1
        if record is not None:
            os.write(record, f"{time.monotonic():.4f}\t{event}\t{path}\n".encode())
        elif seen == wanted["operation"]:
            threading.Thread(target=interrupt, args=(wanted,), daemon=True).start()

    sys.addaudithook(notice)


def interrupt(wanted: dict) -> None:
    time.sleep(wanted["delay"])
    number, root = getattr(signal, wanted["signal"]), int(os.environ["FILE_OPERATIONS_ROOT"])
    if wanted["target"] == "root":
        os.kill(root, number)
    elif wanted["target"] == "group":
        os.killpg(root, number)
    elif wanted["target"] == "all":
        import psutil

        everyone = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        for one in everyone:
            if one.pid != os.getpid():
                one.send_signal(number)
    if wanted["target"] in ("self", "all"):
        os.kill(os.getpid(), number)


os.environ.setdefault("FILE_OPERATIONS_ROOT", str(os.getpid()))
chosen = json.loads(os.environ.get("FILE_OPERATIONS", "null"))
if chosen and os.environ.get("RANK") == chosen["rank"]:
    del os.environ["FILE_OPERATIONS"]  # not meant for processes that this one starts
    watch(chosen)
