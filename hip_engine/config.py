"""The model's shape from its GGUF keys, read by the engine's own code and refused when in doubt."""

from dataclasses import dataclass

from gguf import GGUFReader

from hip_engine.errors import ModelRefused

# key after "llama." -> attribute of ModelConfig.
REQUIRED = {
    "block_count": "L",
    "embedding_length": "D",
    "feed_forward_length": "F",
    "attention.head_count": "N",
    "context_length": "context_length",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}
OPTIONAL = {
    "attention.head_count_kv": "K",
    "attention.key_length": "H",
    "attention.value_length": "value_length",
    "rope.dimension_count": "rope_dimensions",
    "rope.freq_base": "rope_base",
    "vocab_size": "V",
    "rope.scaling.type": "rope_scaling",
}
INTEGERS = {"L", "D", "F", "N", "context_length", "K", "H", "value_length", "rope_dimensions", "V"}


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-architecture model: letters as in WORKSPACE_NOTES.md."""

    L: int
    D: int
    F: int
    N: int
    K: int
    H: int
    V: int
    context_length: int
    norm_eps: float
    rope_base: float

    @property
    def G(self) -> int:
        return self.N // self.K

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> "ModelConfig":
        """Reads the `llama.*` keys.

        Raises:
          ModelRefused: another architecture; missing, unknown or contradictory keys, by name.
        """
        architecture = _value(reader, "general.architecture")
        if architecture != "llama":
            raise ModelRefused(f"architecture {architecture!r}: this engine runs 'llama'")
        values = _read_values(reader)
        values.setdefault("K", values["N"])
        values.setdefault("rope_base", 10000.0)
        if "V" not in values:
            values["V"] = _embedding_rows(reader)
        scaling = values.pop("rope_scaling", "none")
        if scaling != "none":
            raise ModelRefused(f"llama.rope.scaling.type is {scaling!r}: only 'none' is supported")
        for letter in INTEGERS & values.keys():
            if values[letter] <= 0:
                raise ModelRefused(f"model size {letter} is {values[letter]}: must be positive")
        _check_heads(values)
        del values["value_length"], values["rope_dimensions"]
        return cls(**values)


def _read_values(reader: GGUFReader) -> dict:
    known = REQUIRED | OPTIONAL
    values, unknown = {}, []
    for key in reader.fields:
        if not key.startswith("llama."):
            continue
        name = key.removeprefix("llama.")
        if name not in known:
            unknown.append(key)
            continue
        value = _value(reader, key)
        values[known[name]] = int(value) if known[name] in INTEGERS else value
    if unknown:
        raise ModelRefused(f"keys that this engine does not know: {', '.join(unknown)}")
    missing = [f"llama.{name}" for name, letter in REQUIRED.items() if letter not in values]
    if missing:
        raise ModelRefused(f"missing keys: {', '.join(missing)}")
    return values


def _check_heads(values: dict):
    N, K, D = values["N"], values["K"], values["D"]
    if N % K:
        raise ModelRefused(f"{N} query heads are not a multiple of {K} kv heads")
    if "H" not in values:
        if D % N:
            raise ModelRefused(f"embedding length {D} is not a multiple of {N} heads")
        values["H"] = D // N
    for letter in ("value_length", "rope_dimensions"):
        if values.setdefault(letter, values["H"]) != values["H"]:
            raise ModelRefused(f"{letter} is {values[letter]}, the head size is {values['H']}")


def _embedding_rows(reader: GGUFReader) -> int:
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            return int(tensor.shape[-1])
    raise ModelRefused("no tensor token_embd.weight")


def _value(reader: GGUFReader, key: str):
    field = reader.get_field(key)
    if field is None:
        raise ModelRefused(f"missing key {key}")
    return field.contents()
