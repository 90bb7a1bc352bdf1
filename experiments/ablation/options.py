"""Flags of an ablation study, beside those that every experiment shares."""

from absl import flags as absl_flags

from experiments.ablation.factors import DEFAULT
from experiments.ablation.studies import STUDIES
from experiments.flags import UNREPEATED

FLAGS = (
    (absl_flags.DEFINE_enum, "study", "one_factor", STUDIES, "Which policies are compared."),
    (absl_flags.DEFINE_list, "factors", list(DEFAULT), "Deviations: FIELD=VALUE[@SITE][/LAYERS]."),
    (absl_flags.DEFINE_list, "base", [], "Deviations of every policy of the study: kv=fp16."),
    (absl_flags.DEFINE_float, "kl_budget", 1e-3, "Nats a token that precision may cost."),
    (absl_flags.DEFINE_enum, "compare", "none", ["none", "engine"], "Measure the engine beside."),
)


def command(values: absl_flags.FlagValues) -> str:
    """The command line that measures the same again."""
    given = [name for name in values if values[name].present and name not in UNREPEATED]
    texts = []
    for name in given:
        value = values[name].value
        texts.append(f"--{name}={','.join(value) if isinstance(value, list) else value}")
    return " ".join(["python -m experiments.precision_ablation", *texts])
