"""Runs the code blocks of one page as a reader would: one Python session and one shell, in the folder it starts in.

    python page_runner.py blocks.json        [{"language": "python" or "sh", "code": ..., "where": ..., "line": ...}]

A shell block begins where the last one ended. The first block that fails ends the run with its page and line.
"""

from __future__ import annotations

import json
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

SHELL_TAIL = '\npwd > "$0"\n'


def main() -> int:
    namespace: dict = {"__name__": "page"}
    here = Path.cwd()
    sys.path.insert(0, str(here))
    state = here / ".shell_folder"
    state.write_text(str(here))
    for block in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        print(f"--- {block['where']}:{block['line']}", flush=True)
        if block["language"] == "python":
            # The empty lines ahead make a traceback's line numbers those of the page.
            code = compile("\n" * block["line"] + block["code"], block["where"], "exec")
            exec(code, namespace)
        else:
            command = ["bash", "-euo", "pipefail", "-c", block["code"] + SHELL_TAIL, str(state)]
            code = subprocess.run(command, cwd=state.read_text().strip(), check=False).returncode
            if code:
                print(f"exit code {code}: {block['where']}:{block['line']}")
                return 1
            site.addsitedir(sysconfig.get_path("purelib"))  # what the block installed can be imported
    return 0


if __name__ == "__main__":
    sys.exit(main())
