"""Adapters written here and read by PEFT give the same logits, and the other way round."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
peft = pytest.importorskip("peft", reason="not run: peft is not installed")

from tinyllm.formats import safetensors_file  # noqa: E402
from tinyllm.formats.state import load  # noqa: E402
from tinyllm.lora import apply_lora, disable_lora, merge_lora  # noqa: E402
from tinyllm.lora.peft.adapter import load_adapter, save_adapter  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 80, (2, 17))
SMALL = {"vocab_size": 80, "bos_token_id": None, "eos_token_id": None}
LLAMA = {
    **SMALL, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder of each family with random biases, norms and weights."""
    folders = {}
    for name, make in FAMILIES.items():
        torch.manual_seed(1)
        model = make()
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


def close(ours, theirs, budget=1e-5):
    """Rounding in float32: two layers of sums over at most 128 products, in another order."""
    assert np.abs(ours - theirs).max() <= budget * np.abs(theirs).max()


def theirs_of(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def hf(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def same_tensors(a, b):
    a, b = (safetensors_file.read(folder / "adapter_model.safetensors")[0] for folder in (a, b))
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a)


def peft_reads(base, folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")  # PEFT only warns of keys that do not fit
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")
        return peft.PeftModel.from_pretrained(hf(base), folder)


def shaken(model, seed=3):
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    return model.eval()


COMMON = [
    {},
    {"target_modules": "all-linear", "use_rslora": True},
    {"target_modules": "all-linear", "use_dora": True},
    {"target_modules": "all-linear", "use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"]},
    {"rank_pattern": {r"layers\.0\..*": 3}, "dropout": 0.2},
]
BIASED = [{"bias": "lora_only"}, {"bias": "all"}, {"bias": "all", "use_dora": True, "target_modules": ["o_proj"]}]
BIASED_GPT2 = [*BIASED[:2], {"bias": "all", "use_dora": True, "target_modules": ["c_proj"]}]
CASES = [
    *[("llama", options) for options in COMMON],
    ("llama", {"target_modules": ["q_proj", "layers.1.mlp.up_proj"], "rank_pattern": {"q_proj": 8},
               "alpha_pattern": {"up_proj": 32}}),
    ("llama", {"modules_to_save": ["norm", "lm_head"], "rank_pattern": {r"layers\.0\..*": 3}}),
    ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    *[("qwen2", options) for options in [*COMMON, *BIASED]],
    *[("gpt2", options) for options in [*COMMON, *BIASED_GPT2]],
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"qkv_proj": 5}}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["mlp"]}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["norm"], "bias": "lora_only"}),
]  # fmt: skip


@pytest.mark.parametrize("family, options", CASES, ids=str)
def test_ours_read_by_peft(tmp_path, bases, family, options):
    base = bases[family]
    ours = DecoderModel.from_pretrained(base)
    shaken(apply_lora(ours, 4, 8.0, verbose=False, **options))
    save_adapter(ours, tmp_path / "a")
    theirs = peft_reads(base, tmp_path / "a")
    close(ours(IDS).data, theirs_of(theirs))
    assert np.abs(ours(IDS).data - DecoderModel.from_pretrained(base)(IDS).data).max() > 1e-3
    theirs.save_pretrained(tmp_path / "b", save_embedding_layers=False)
    same_tensors(tmp_path / "a", tmp_path / "b")
    again = load_adapter(DecoderModel.from_pretrained(base), tmp_path / "b").eval()
    assert np.array_equal(again(IDS).data, ours(IDS).data)
    close(merge_lora(again)(IDS).data, theirs_of(theirs.merge_and_unload()))


PEFT_COMMON = [
    {},  # its own default targets
    {"target_modules": "all-linear", "use_rslora": True},
    {"target_modules": "all-linear", "use_dora": True, "lora_dropout": 0.1},
    {"target_modules": "all-linear", "layers_to_transform": None, "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["lm_head"]},
]
PEFT_CASES = [
    *[(family, options) for family in FAMILIES for options in PEFT_COMMON],
    ("llama", {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}}),
    ("llama", {"target_modules": r".*layers\.1\.(self_attn|mlp)\..*_proj"}),
    ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]}),
    ("llama", {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": [1]}),
    ("llama", {"target_modules": ["v_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}),
    ("llama", {"target_modules": ["v_proj"], "bias": "all"}),  # there is none
    ("llama", {"target_modules": ["v_proj", "up_proj"], "modules_to_save": ["mlp"]}),
    *[("qwen2", {"target_modules": ["q_proj", "down_proj"], "bias": bias}) for bias in ("lora_only", "all")],
    *[("gpt2", {"target_modules": ["c_proj"], "bias": bias}) for bias in ("lora_only", "all")],
    ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "use_dora": True, "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 2},
              "alpha_pattern": {"h.1.attn.c_attn": 3}}),
    ("gpt2", {"target_modules": ["attn.c_proj"], "modules_to_save": ["wte", "lm_head"]}),
    ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["mlp", "ln_f"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "layers_to_transform": [0]}),
]  # fmt: skip


def peft_model(base, seed=0, **options):
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, **options}
    theirs = peft.get_peft_model(hf(base), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    for p in theirs.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return theirs


@pytest.mark.parametrize("family, options", PEFT_CASES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_theirs_read_by_us(tmp_path, bases, family, options):
    base = bases[family]
    theirs = peft_model(base, **options)
    theirs.save_pretrained(tmp_path / "a")
    plain = DecoderModel.from_pretrained(base)(IDS).data
    ours = load_adapter(DecoderModel.from_pretrained(base), tmp_path / "a").eval()
    close(ours(IDS).data, theirs_of(theirs))
    assert np.abs(ours(IDS).data - plain).max() > 1e-3
    assert np.array_equal(disable_lora(ours)(IDS).data, plain)  # biases, too
    save_adapter(ours, tmp_path / "b")
    if options.get("target_modules") != ["lm_head"]:  # PEFT writes the whole head beside its adapter
        same_tensors(tmp_path / "a", tmp_path / "b")
    close(theirs_of(peft_reads(base, tmp_path / "b")), theirs_of(theirs))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(list(FAMILIES)),
    targets=st.sets(st.sampled_from([0, 1, 2, 3]), min_size=1),
    options=st.fixed_dictionaries(
        {"r": st.integers(1, 9), "lora_alpha": st.integers(1, 40), "use_dora": st.booleans(),
         "use_rslora": st.booleans(), "bias": st.sampled_from(["none", "all", "lora_only"])}
    ),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_any_configuration_goes_there_and_back(tmp_path_factory, bases, family, targets, options, whole, seed):
    names = ["attn.c_attn", "c_fc", "attn.c_proj", "h.1.mlp.c_proj"]
    if family != "gpt2":
        names = ["q_proj", "up_proj", "o_proj", "layers.1.mlp.down_proj"]
    options["target_modules"] = [names[i] for i in targets]
    options["modules_to_save"] = ["lm_head"] if whole else None
    folder, base = tmp_path_factory.mktemp("any"), bases[family]
    theirs = peft_model(base, seed, **options)
    theirs.save_pretrained(folder / "a")
    ours = load_adapter(DecoderModel.from_pretrained(base), folder / "a").eval()
    # Adapters of a large scale magnify rounding; how much, torch's own float32 and float64 tell.
    expected = theirs_of(theirs)
    magnified = np.abs(expected - theirs_of(copy.deepcopy(theirs).double())).max()
    close(ours(IDS).data, expected, 1e-5 + 8 * magnified / np.abs(expected).max())
    save_adapter(ours, folder / "b")
    same_tensors(folder / "a", folder / "b")
    close(theirs_of(peft_reads(base, folder / "b")), expected)


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.filterwarnings("ignore")
def test_fan_in_fan_out_says_nothing_about_a_and_b(tmp_path, bases, said):
    theirs = peft_model(bases["gpt2"], target_modules=["c_attn", "c_proj"])
    theirs.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    fields = {k: v for k, v in fields.items() if k != "fan_in_fan_out"} | (
        {} if said is None else {"fan_in_fan_out": said}
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    ours = load_adapter(DecoderModel.from_pretrained(bases["gpt2"]), tmp_path).eval()
    close(ours(IDS).data, theirs_of(theirs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_adapters(tmp_path, bases, dtype):
    theirs = peft_model(bases["qwen2"], use_dora=True)
    for p in theirs.parameters():
        if p.requires_grad:
            p.data = p.data.to(getattr(torch, dtype)).float()
    theirs.save_pretrained(tmp_path / "float")
    arrays = load(tmp_path / "float" / "adapter_model.safetensors")
    (tmp_path / "a").mkdir()
    tensors = {k: torch.tensor(a).to(getattr(torch, dtype)) for k, a in arrays.items()}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "float" / "adapter_config.json").rename(tmp_path / "a" / "adapter_config.json")
    ours = load_adapter(DecoderModel.from_pretrained(bases["qwen2"]), tmp_path / "a").eval()
    close(ours(IDS).data, theirs_of(theirs))
    save_adapter(ours, tmp_path / "b", dtype=dtype)  # nothing is rounded twice

    def raw(folder):
        from safetensors.torch import load_file

        return load_file(folder / "adapter_model.safetensors")

    a, b = raw(tmp_path / "a"), raw(tmp_path / "b")
    assert a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
    close(theirs_of(peft_reads(bases["qwen2"], tmp_path / "b")), theirs_of(theirs))


def test_named_adapters_lie_in_sub_folders(tmp_path, bases):
    theirs = peft_model(bases["llama"])
    theirs.add_adapter("second", peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["up_proj"]))
    theirs.save_pretrained(tmp_path)
    theirs.set_adapter("second")
    ours = load_adapter(DecoderModel.from_pretrained(bases["llama"]), tmp_path / "second", "second").eval()
    close(ours(IDS).data, theirs_of(theirs))
    (tmp_path / "adapter_config.json").unlink()
    close(load_adapter(DecoderModel.from_pretrained(bases["llama"]), tmp_path, "second")(IDS).data, theirs_of(theirs))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dora", [False, True])
def test_one_training_step_moves_the_same_way(bases, tmp_path, family, dora):
    """The gradients of A, B, m and biases: PEFT's, to rounding; for DoRA that means the norm is detached."""
    bias = "none" if family == "llama" else "lora_only"
    theirs = peft_model(bases[family], use_dora=dora, bias=bias, target_modules="all-linear")
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(DecoderModel.from_pretrained(bases[family]), tmp_path, trainable=True)
    targets = np.roll(IDS, -1, 1)
    ours.loss(IDS, targets).backward()
    logits = theirs(torch.tensor(IDS)).logits
    torch.nn.functional.cross_entropy(logits.reshape(-1, 80), torch.tensor(targets).reshape(-1)).backward()
    from tinyllm.lora.peft.adapter import parts_of
    from tinyllm.lora.peft.keys import Names

    names, wanted = Names(ours), {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found = 0
    for (path, part), p in parts_of(ours, "default").items():
        stem, _, suffix = names.key(path, part, True).rpartition(".lora_")
        if part == "bias":
            key = names.key(path, part, True)
        elif part == "lora_magnitude_vector":
            key = f"{stem}.lora_magnitude_vector.default.weight"
        else:
            key = f"{stem}.lora_{suffix.partition('.')[0]}.default.weight"
        theirs_g = wanted[key].numpy()
        assert np.abs(p.grad - theirs_g).max() <= 2e-5 * max(np.abs(theirs_g).max(), 1e-3), key
        found += 1
    assert found == len(wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_is_read_by_transformers(tmp_path, bases):
    for family in FAMILIES:
        theirs = peft_model(bases[family], use_dora=True, target_modules="all-linear")
        theirs.save_pretrained(tmp_path / family)
        ours = load_adapter(DecoderModel.from_pretrained(bases[family]), tmp_path / family).eval()
        merge_lora(ours, keep_base=False).save_pretrained(tmp_path / f"{family}_merged")
        close(theirs_of(hf(tmp_path / f"{family}_merged")), theirs_of(theirs))
