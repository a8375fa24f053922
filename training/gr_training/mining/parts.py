"""
Results that take long are written in parts, so that a killed process or a full disk costs one part.

Parts lie in a hidden folder beside the result, `.NAME.parts`, with a `plan.json` that says what they are parts of. When
all are there they are joined, and the folder goes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gr_components.data.candidates import is_current, write_sidecar
from gr_components.data.files import write_objects, writing
from gr_components.errors import DataError, full_disk
from gr_components.progress import Reporter, Silent
from gr_training.distributed import rank


def is_wanted(path: Path, made_by: Mapping[str, Any], *, resume: bool) -> bool:
    """
    Say whether a result is to be made, inside `main_first`: the processes after the first one find it made.

    :param path: The result.
    :param made_by: How it would be made.
    :param resume: Whether one that is there and still true is kept.
    """
    return (not resume and rank() == 0) or not is_current(path, made_by)


class Parts:
    """
    The parts of one result.

    :param path: The result, a JSONL file; `.gz` is compressed.
    :param made_by: How it is made; parts of a result that was to be made otherwise are thrown away.
    :param hashes: Of its inputs, by path; likewise.
    :param resume: Whether finished parts are used.
    :param report: Told what is there already.
    """

    def __init__(
        self, path: Path, made_by: Mapping[str, Any], hashes: Mapping[str, str], *, resume: bool = True,
        report: Reporter | None = None,
    ) -> None:  # fmt: skip
        self.path, self.folder = path, path.with_name(f".{path.name}.parts")
        self._made_by, self._hashes = made_by, hashes
        plan = json.dumps({"made_by": made_by, "inputs": hashes}, sort_keys=True)
        known = self.folder / "plan.json"
        if not resume or not known.is_file() or known.read_text(encoding="utf-8") != plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            with writing(known) as file:
                file.write(plan)
        finished = len(list(self.folder.glob("part-*.json")))
        if finished:
            (report or Silent()).event("resumed", file=str(path), parts=finished)

    def is_done(self, number: int) -> bool:
        """
        Say whether a part is there.

        :param number: Which one.
        """
        return self._summary(number).is_file()

    def write(self, number: int, lines: Iterable[Mapping[str, Any]], summary: Mapping[str, int], where: str) -> None:
        """
        Write a part.

        :param number: Which one.
        :param lines: Its lines.
        :param summary: Counts, which are added up over the parts.
        :param where: What the part is about, for errors.
        :raises DataError: If the disk is full; the parts before stay.
        """
        with self.explaining(where):
            write_objects(self._lines(number), lines)
            with writing(self._summary(number)) as file:
                file.write(json.dumps(dict(summary)))

    def join(self, total: int) -> dict[str, int]:
        """
        Put the parts together, write the result's sidecar, and remove the parts.

        :param total: How many parts there are.
        :returns: The counts of all parts.
        :raises DataError: If the disk is full; the parts stay.
        """
        counts: dict[str, int] = {}
        for number in range(total):
            for name, value in json.loads(self._summary(number).read_text(encoding="utf-8")).items():
                counts[name] = counts.get(name, 0) + value
        with self.explaining("joining the parts"):
            self._concatenate(total)
            write_sidecar(self.path, made_by=self._made_by, hashes=self._hashes, summary=counts)
        shutil.rmtree(self.folder)
        return counts

    @contextmanager
    def explaining(self, where: str) -> Iterator[None]:
        """
        Say what a full disk means for the result.

        :param where: What is being made, for the message.
        :raises DataError: If the disk is full.
        """
        try:
            yield
        except OSError as error:
            if full_disk(error) is None:
                raise
            finished = len(list(self.folder.glob("part-*.json")))
            msg = (
                f"'{self.path}', {where}: the disk is full ({error.strerror}). {finished} finished parts are kept in "
                f"'{self.folder}'; make room and go on with --resume."
            )
            raise DataError(msg) from error

    def _concatenate(self, total: int) -> None:
        """Compressed files that follow each other are one compressed file."""
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as joined:
                for number in range(total):
                    with self._lines(number).open("rb") as part:
                        shutil.copyfileobj(part, joined)
                joined.flush()
                os.fsync(joined.fileno())
            os.chmod(name, self._summary(0).stat().st_mode & 0o777)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _lines(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.jsonl{'.gz' if self.path.suffix == '.gz' else ''}"

    def _summary(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.json"
