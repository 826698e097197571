"""Whether the models get loaded: what TorchServe's management API says of them while it starts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from whybox_service import probe

ATTEMPTS = 3
_WORDS = 20


class Loading:
    """The workers of a TorchServe that starts, over several looks.

    TorchServe starts a worker that ends while it loads again and again, and says nowhere how often. But each
    attempt is another process.

    Args:
        management_url: of TorchServe's management API.
        models: names of the models.
    """

    def __init__(self, management_url: str, models: Sequence[str]) -> None:
        self._management_url = management_url
        self._models = models
        self._pids: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        self.missing = list(models)
        """The models of which no worker was ready at the last look."""
        self.hopeless: list[str] = []
        """The models of which a worker has ended `ATTEMPTS` times since one was ready."""

    def look(self) -> None:
        """Look at the workers; a TorchServe that does not answer has none."""
        ready = {name for name in self._models if self._look(name)}
        self.missing = [name for name in self._models if name not in ready]
        self.hopeless = sorted({name for (name, _), pids in self._pids.items() if len(pids) > ATTEMPTS})

    def _look(self, name: str) -> bool:
        """Look at the workers of a model; return whether one of them is ready."""
        ready = False
        try:
            for version in probe.get_json(f"{self._management_url}/models/{quote(name, safe='')}"):
                for worker in version["workers"]:
                    pids = self._pids[name, str(worker["id"])]
                    if worker["status"] == "READY":
                        ready = True
                        pids.clear()
                    elif int(worker["pid"]) > 0:
                        pids.add(int(worker["pid"]))
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return ready


def last_words(logs: Path, model: str) -> str:
    """Return what the workers of a model said last, from TorchServe's logs."""
    line_of_model = re.compile(rf"\bW-\d+-{re.escape(model)}_\S* +(?:- )?(?P<said>.*)")
    said = []
    for line in tail(logs / "workers.log", 1 << 20):
        if (found := line_of_model.search(line)) is not None:
            said.append(f"{model}: {found['said']}")
    return "\n".join(said[-_WORDS:])


def tail(path: Path, size: int) -> list[str]:
    """Return the lines of the last bytes of a file; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
