"""Traces on disk: a folder with trace.json and tensors in safetensors or npz files.

trace.json names the run: model_sha256, prompt_sha256, token_ids; it may give `precision` (site ->
declared dtypes and more), `files` (name -> sha256) and anything else. A tensor's name is that of a
map. A name that occurs in several files is one tensor cut along its tokens, in the order of the
files' names (numbers as numbers), so an engine may write a file a step, a layer or a run.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from experiments.align import name_map, records, sites, tensor_file
from experiments.align.errors import RecordError, TraceError, UnequalKeys
from experiments.align.slabs import grew
from experiments.align.trace import Run, Trace

MANIFEST = "trace.json"
NEEDED = {"model_sha256": str, "prompt_sha256": str, "token_ids": list}


@dataclass(frozen=True)
class Stored:
    """A trace as far as it could be read.

    complaints: what is lost: a trace with any of them is no base for a pass. unknown: names that
    the map does not have. mapped: the sites of its map: what it could have held.
    """

    folder: Path
    trace: Trace
    precision: Mapping[str, Mapping]
    manifest: Mapping
    mapped: frozenset[str]
    complaints: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def first_tokens(self, tokens: int) -> "Stored":
        return replace(self, trace=self.trace.first_tokens(tokens))


def read(
    folder: Path, names: name_map.NameMap, dims: Mapping[str, int], model_sha256: str
) -> Stored:
    """What was cut off is read up to the cut.

    Raises:
      TraceError: it is no trace. UnequalKeys: it is one of another model.
    """
    manifest = _manifest(folder)
    if manifest["model_sha256"] != model_sha256:
        raise UnequalKeys(
            f"refusing to judge {folder}: its model_sha256 is {manifest['model_sha256']!r}, "
            f"that of --model is {model_sha256!r}"
        )
    run = Run(manifest["model_sha256"], manifest["prompt_sha256"], tuple(manifest["token_ids"]))
    pieces: dict[tuple[int, str], list[tuple[str, np.ndarray]]] = {}
    complaints, unknown = [], set()
    for path in _files(folder):
        stored = tensor_file.read(path)
        if stored.lost:
            complaints.append(f"{folder.name}: {stored.lost}")
        else:
            _check_digest(path, manifest)
        for name, array in stored.tensors.items():
            plain, _, _ = name.partition("@")
            if found := names.find(plain):
                layer, tensor = found
                arranged = tensor.arranged(array, dims, f"{path}: tensor {name!r}")
                for site in tensor.sites:
                    pieces.setdefault((layer, site), []).append((tensor.letters, arranged))
            elif not names.ignores(plain):
                unknown.add(name)
    if not pieces and not complaints:
        seen = f"; it has {', '.join(sorted(unknown)[:3])}" if unknown else ""
        raise TraceError(f"{folder} holds no tensor that the map {names.path} knows{seen}")
    tokens = len(run.token_ids_T)
    rows = {place: _rows(folder, place, parts, tokens) for place, parts in pieces.items()}
    found = Stored(
        *(folder, Trace(run, rows), names.precision() | manifest.get("precision", {}), manifest),
        *(names.sites, tuple(complaints), tuple(sorted(unknown))),
    )
    return _up_to_the_cut(found)


def _up_to_the_cut(stored: Stored) -> Stored:
    """Without the tokens that no place (or, of a damaged trace, not every place) has."""
    counts = [len(rows) for rows in stored.trace.rows_by_place.values()]
    tokens = len(stored.trace.run.token_ids_T)
    usable = (min if stored.complaints else max)(counts, default=0)
    if usable == tokens:
        return stored
    text = f"{stored.folder.name}: the trace ends after {usable} of {tokens} tokens"
    return replace(stored.first_tokens(usable), complaints=(*stored.complaints, text))


def _manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"{folder} is no trace: cannot read its {MANIFEST}: {reason}") from error
    for name, kind in NEEDED.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind) or not found[name]:
            raise TraceError(f"{path} lacks {name}: a trace names its model, prompt and tokens")
    if not all(type(token) is int and token >= 0 for token in found["token_ids"]):
        raise TraceError(f"{path}: token_ids are not all token ids")
    for name in ("precision", "files"):
        if not isinstance(found.get(name, {}), dict):
            raise TraceError(f"{path}: {name} is not a mapping")
    return found


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix in tensor_file.SUFFIXES]
    if not found:
        raise TraceError(f"{folder} holds no {' or '.join(tensor_file.SUFFIXES)} file")
    return sorted(found, key=lambda path: [_number(t) for t in re.split(r"(\d+)", path.name)])


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (-1, text)


def _check_digest(path: Path, manifest: Mapping) -> None:
    expected = manifest.get("files", {}).get(path.name)
    if expected is not None and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise TraceError(f"{path} is corrupt: it has not the sha256 that {MANIFEST} gives")


def _rows(folder: Path, place: tuple[int, str], pieces: list, tokens: int) -> Sequence[np.ndarray]:
    """One array a token, from pieces in order."""
    letters, shape = pieces[0][0], sites.SHAPES[place[1]]
    arrays = [array for _, array in pieces]
    if shape.startswith("T") and "S" in shape:
        rows = [row for array in arrays for row in array]
        rows = [row[..., : position + 1] for position, row in enumerate(rows)]
    elif shape.startswith("T"):
        rows = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    elif "S" in letters:
        rows = slabs_of(arrays)
    else:
        rows = slabs_of([np.concatenate(arrays)])
    if len(rows) > tokens:
        raise TraceError(
            f"{folder}: {sites.name(*place)} has {len(rows)} rows, the trace has {tokens} tokens"
        )
    return rows


def slabs_of(segments: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The live slab of every token, from slabs that each hold all that was live at some token."""
    rows: list[np.ndarray] = []
    for slab_SKH in segments:
        rows += [slab_SKH[:slots] for slots in range(len(rows) + 1, len(slab_SKH) + 1)]
    return rows


def write(folder: Path, trace: Trace, precision: Mapping[str, Mapping], **more) -> Path:
    """Writes a trace with the names of the map `sites`, a file a layer.

    `more` goes into the manifest, which comes first, so that a trace that is cut off can be read;
    it is written again with the files' digests at the end. Raises RecordError.
    """
    run = trace.run
    manifest = {
        "model_sha256": run.model_sha256,
        "prompt_sha256": run.prompt_sha256,
        "token_ids": run.token_ids_T,
        "precision": precision,
    } | more
    _write_manifest(folder, manifest)
    files = {}
    by_layer: dict[int, dict[str, np.ndarray]] = {}
    for place in sorted(trace.rows_by_place, key=lambda place: sites.order(*place)):
        named = _named(*place, trace.rows(*place))
        by_layer.setdefault(place[0], {}).update(named)
    for layer, tensors in by_layer.items():
        path = folder / ("model" if layer == sites.NO_LAYER else f"layer_{layer}")
        path = path.with_suffix(".safetensors")
        try:
            save_file(tensors, path)
            files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error
    _write_manifest(folder, manifest | {"files": files})
    return folder


def _write_manifest(folder: Path, manifest: Mapping) -> None:
    records.writable_dir(folder)
    text = json.dumps(records.plain_values(manifest), indent=1)
    records.write_whole(folder / MANIFEST, f"{text}\n")


def _named(layer: int, site: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one place by name. Slabs that only grew are one tensor, the last."""
    name, shape = (site if layer == sites.NO_LAYER else f"{layer}.{site}"), sites.SHAPES[site]
    if shape.startswith("S"):
        ends = [t for t in range(len(rows)) if t + 1 == len(rows) or not grew(*rows[t : t + 2])]
        return {f"{name}@{t + 1:09}": np.ascontiguousarray(rows[t]) for t in ends}
    if "S" in shape:
        whole = np.zeros((len(rows), *rows[-1].shape[:-1], len(rows)), rows[-1].dtype)
        for position, row in enumerate(rows):
            whole[position, ..., : position + 1] = row
        return {name: whole}
    return {name: np.ascontiguousarray(np.stack(list(rows)))}
