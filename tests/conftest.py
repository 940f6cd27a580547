"""One thread, no network, and tiny random models that the tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "120"  # tables are as wide as the terminal, which a worker of xdist does not have

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_locks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that run beside each other do not wait for each other's timed runs, nor for those of this machine."""
    os.environ["VIASD_LOCKS"] = str(tmp_path_factory.mktemp("locks"))


VOCABULARY = 48
WINDOW = 8  # shorter than every context of the tests

# family: (class prefix in transformers, what its config adds)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
}
ModelFactory = Callable[..., Any]


def exact_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """Plain attention with a softmax in the model's own dtype: the library's eager one rounds it to float32."""
    groups = module.num_key_value_groups
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
    softcap = options.get("softcap")
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


def build_model(family: str, seed: int = 0, layers: int = 4, exact: bool = False, **overrides: Any) -> Any:
    """A random causal LM in float64 whose greedy output varies: wide initial weights make its attention sharp.

    `exact` gives it `exact_attention`, for comparisons below 1e-6 where the library runs eager attention.
    """
    import transformers

    name, extra = FAMILIES[family]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **extra,
        **overrides,
    }
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval().requires_grad_(False)
    if family == "gemma2":  # it scales embeddings up and normalizes what layers add: the last token would decide alone
        model.get_input_embeddings().weight *= 0.1
    if exact:
        transformers.AttentionInterface.register("exact", exact_attention)
        transformers.AttentionMaskInterface.register("exact", transformers.masking_utils.eager_mask)
        model.set_attn_implementation("exact")
    return model


@pytest.fixture(scope="session")
def tiny() -> ModelFactory:
    """`tiny(family, seed=, layers=, **config)`: one shared instance per call signature. Do not change its weights."""
    made: dict[str, Any] = {}

    def make(family: str, **settings: Any) -> Any:
        key = f"{family} {sorted(settings.items())}"
        if key not in made:
            made[key] = build_model(family, **settings)
        return made[key]

    return make


@pytest.fixture(scope="session")
def variant() -> ModelFactory:
    """`variant(model, "noisy" | "opposite")`: a copy that agrees with the model now and then, or never."""

    def make(model: Any, how: str, noise: float = 0.06) -> Any:
        twin = copy.deepcopy(model)
        if how == "noisy":
            generator = torch.Generator().manual_seed(5)
            for weight in twin.get_decoder().layers.parameters():
                weight += noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        else:  # the most probable token becomes the least probable one
            twin.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight, requires_grad=False)
        return twin

    return make
