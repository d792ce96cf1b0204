"""Configurations survive JSON, refuse what cannot work with the field's name, and every experiment builds."""

import ast
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from lumina_jax.aot.plan import Plan, plan_mesh
from lumina_jax.chips import parse_topology
from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    EmojiConfig,
    FinetuneConfig,
    FlowConfig,
    FolderConfig,
    HostsConfig,
    MediaConfig,
    MeshConfig,
    ModalityConfig,
    ModelConfig,
    OptimizerConfig,
    Part,
    PictureConfig,
    RunConfig,
    SampleConfig,
    SourceConfig,
    TextConfig,
    VaeConfig,
    ViewGridConfig,
)
from lumina_jax.config_files import load_config
from lumina_jax.parallel.mesh import check_mesh, configured_mesh
from lumina_jax.training.state import parameter_count

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
MODEL = {"layers": 2, "heads": 4, "width": 48}
CONFIG = Config(model=ModelConfig(**MODEL))


def test_json_gives_the_same_configuration_back():
    config = Config(
        model=ModelConfig(**MODEL, kv_heads=2, mlp_multiplier=1.3, conditioning="label"),
        flow=FlowConfig(path="vp", prediction="noise", loss_weight="likelihood", time_shift=4.0),
        data=DataConfig(source=FolderConfig(path="pictures"), row_tokens=512, samples_per_row=4),
        optimizer=OptimizerConfig(clip_norm=None, accumulate=4),
        sample=SampleConfig(guided_channels=3),
        run=RunConfig(sample_prompts=("red heart, noto style", "日本")),
    )
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "depth", 3),
        ("run", "widht", 3),
        ("model", "layers", "many"),
        ("data", "caption_dropout", "half"),
        ("optimizer", "clip_norm", [1]),
    ],
)
def test_a_wrong_or_unknown_field_in_json_is_named(section, field, value):
    changed = json.loads(CONFIG.to_json())
    changed[section][field] = value
    with pytest.raises(ValueError, match=re.escape(f"{section}.{field}")):
        Config.from_json(json.dumps(changed))


def test_an_unknown_section_in_json_is_named():
    changed = json.loads(CONFIG.to_json()) | {"optimiser": {}}
    with pytest.raises(ValueError, match="optimiser"):
        Config.from_json(json.dumps(changed))


REFUSED = [
    *[(ModelConfig, MODEL, name, 0) for name in ("layers", "heads", "width", "patch_size", "channels", "unroll")],
    *[(ModelConfig, MODEL, name, 0) for name in ("classes", "text_width")],
    (ModelConfig, MODEL, "heads", 5),
    (ModelConfig, MODEL, "kv_heads", 3),
    (FlowConfig, {}, "time_shift", 0.0),
    (FlowConfig, {}, "loss_weight", "velocity"),
    (TextConfig, {}, "max_tokens", 1),
    *[(DataConfig, {}, name, 0) for name in ("batch_rows", "samples_per_row", "prefetch")],
    (EmojiConfig, {}, "emoji_names", 0),
    (EmojiConfig, {}, "limit", 0),
    (PictureConfig, {}, "image_size", 0),
    (ClipConfig, {}, "frames", 0),
    (ViewGridConfig, {}, "grid_columns", 0),
    *[(DataConfig, {}, name, -1) for name in ("workers", "bad_samples")],
    (DataConfig, {}, "caption_dropout", 1.0),
    (DataConfig, {}, "caption_dropout", -0.1),
    (DataConfig, {}, "samples_per_row", 2),
    (OptimizerConfig, {}, "learning_rate", 0.0),
    (OptimizerConfig, {}, "warmup_steps", -1),
    (OptimizerConfig, {}, "accumulate", 0),
    (OptimizerConfig, {}, "clip_norm", 0.0),
    *[(OptimizerConfig, {}, name, 1.0) for name in ("beta1", "beta2", "ema_decay")],
    *[(MeshConfig, {}, name, 0) for name in ("fsdp", "tensor")],
    (SampleConfig, {}, "steps", 0),
    *[(SampleConfig, {}, name, 0.0) for name in ("time_shift", "rtol", "atol", "diffusion_norm", "last_step_size")],
    *[(RunConfig, {}, name, 0) for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints")],
    (RunConfig, {}, "name", ""),
    (RunConfig, {}, "name", "a/b"),
]


@pytest.mark.parametrize(("section", "settings", "name", "value"), REFUSED)
def test_what_cannot_work_is_refused_by_its_name_and_value(section, settings, name, value):
    section(**settings)
    with pytest.raises(ValueError, match=rf"{section.called}{name}=") as error:
        section(**(settings | {name: value}))
    assert str(value) in str(error.value)


@pytest.mark.parametrize(("change", "unit"), [({"heads": 16}, 2), ({"rope_axes": 3, "heads": 3}, 6)])
def test_heads_that_no_whole_pairs_fill_are_refused(change, unit):
    with pytest.raises(ValueError, match=f"the width of a head must be a multiple of {unit}"):
        ModelConfig(**(MODEL | change))


def test_rules_between_sections_are_checked():
    with pytest.raises(ValueError, match=r"data.image_size=33 must be a multiple of model.patch_size=2"):
        CONFIG.replace(data={"image_size": 33})
    with pytest.raises(ValueError, match=r"data.batch_rows=32 must be a multiple of optimizer.accumulate=5"):
        CONFIG.replace(optimizer={"accumulate": 5})


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.model.width = 3  # type: ignore[misc]
    assert CONFIG.replace(model={"width": 64}).model.width == 64
    assert CONFIG.model.width == 48


def test_derived_sizes_are_those_of_the_released_models():
    large = ModelConfig(layers=32, heads=32, width=3072)
    assert (large.head_width, large.key_heads, large.condition_width) == (96, 32, 1024)
    assert (large.mlp_width, large.patch_values) == (8192, 16)
    assert ModelConfig(layers=24, heads=32, width=2304, kv_heads=8).key_heads == 8
    assert ModelConfig(**MODEL, mlp_multiple_of=32).mlp_width == 128
    assert ModelConfig(**MODEL, mlp_multiple_of=32, mlp_multiplier=0.5).mlp_width == 64


def test_there_is_a_demo_to_configure():
    assert "emoji" in {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_builds_its_configuration(path):
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__, "the docstring is the lab note"
    for on_cpu in (True, False):
        config = load_config(path, on_cpu)
        assert Config.from_json(config.to_json()) == config


@dataclasses.dataclass(frozen=True)
class Chip:
    """All that a mesh asks of a device."""

    id: int
    process_index: int = 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_divides_its_batch_and_its_heads_over_its_mesh(path):
    plan = Plan(config=load_config(path), topology=parse_topology("v5e:4x4"))
    mesh = plan.mesh
    plan_mesh(plan, [Chip(number) for number in range(mesh.fsdp * mesh.sequence * mesh.tensor)])
    assert plan.load.tokens >= 16


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_starts_on_one_device_or_names_the_flags_with_which_it_does(path):
    config = load_config(path)
    wanted = config.mesh
    if path.stem == "t2v_7b_128k":  # whose rows need the memory of several
        with pytest.raises(ValueError, match=r"add --mesh.sequence 1,"):
            configured_mesh(wanted, [Chip(0)])
        wanted = dataclasses.replace(wanted, sequence=1)
    mesh = configured_mesh(wanted, [Chip(0)])
    check_mesh(config, mesh)
    assert mesh.size == 1


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, id=path.stem) for model, path in {load_config(path).model: path for path in CONFIGS}.items()],
)
def test_every_model_of_an_experiment_builds_without_computing_a_value(model):
    values = parameter_count(model)
    per_layer = values / model.layers / model.width**2
    assert 10 < per_layer < 60  # four projections, three matrices of the feed-forward, modulation, text


SECTIONS = {
    "model": ModelConfig(**MODEL), "flow": FlowConfig(), "text": TextConfig(), "vae": VaeConfig(), "mesh": MeshConfig(),
    "data": DataConfig(), "optimizer": OptimizerConfig(), "hosts": HostsConfig(), "sample": SampleConfig(),
    "run": RunConfig(), "part": Part(), "finetune": FinetuneConfig(),
    "modality": ModalityConfig(name="sound", patch_size=1, channels=8),
    **{name: kind(path="x") for name, kind in SourceConfig.kinds.items()},
    **{name: kind() for name, kind in MediaConfig.kinds.items()},
}  # fmt: skip


def number_fields(kind):
    """Section and name of each field that may hold a number of that kind."""
    return [
        (section, field.name)
        for section, settings in SECTIONS.items()
        for field in dataclasses.fields(settings)
        if kind in (field.type, *typing.get_args(field.type))
    ]


def test_every_section_is_looked_at():
    assert {type(settings) for settings in SECTIONS.values()} >= {f.type for f in dataclasses.fields(Config)}
    assert len(number_fields(float)) > 25
    assert len(number_fields(int)) > 40


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300, 1e-300, -1e300])
@pytest.mark.parametrize(("section", "name"), number_fields(float))
def test_every_number_of_every_section_must_be_one_that_float32_holds(section, name, value):
    with pytest.raises(ValueError, match=rf"{name}|weight") as error:
        dataclasses.replace(SECTIONS[section], **{name: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize("value", [2**31, 10**20, -(2**40), 10**400])
@pytest.mark.parametrize(("section", "name"), [field for field in number_fields(int) if field != ("run", "seed")])
def test_every_integer_of_every_section_must_have_32_bits(section, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SECTIONS[section], **{name: value})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "kv_heads", 0), ("model", "attention_width", 0), ("model", "condition_limit", 0),
        ("model", "mlp_multiple_of", 0), ("model", "mlp_multiplier", 0.0), ("model", "norm_eps", 0.0),
        ("model", "rope_theta", 0.0), ("model", "rope_theta", -1.0), ("model", "modality", "../x"),
        ("optimizer", "eps", 0.0), ("optimizer", "weight_decay", -0.1), ("data", "row_tokens", 0),
        ("clips", "frame_rate", 1e-9), ("sounds", "seconds", 1e9), ("data", "workers", 10**6),
        ("sample", "steps", 10**9),
        ("sample", "guidance", 1e6), ("sample", "guided_channels", 0), ("sample", "rtol", 1e-12),
        ("sample", "rtol", 5.0), ("sample", "negative_scale", 2.0),
        ("sample", "rope_watershed", -0.1), ("sample", "last_step_size", 1.5), ("run", "sample_every", 0),
        ("run", "keep_every", 0), ("run", "name", ".."), ("run", "name", "."), ("run", "name", " "),
        ("run", "name", "a" * 300),
        ("run", "name", "a\x00b"), ("run", "name", "a\\b"), ("run", "root", "gs://bucket/runs"), ("run", "seed", -1),
        ("run", "seed", 2**64), ("run", "seed", 10**20),
    ],
)  # fmt: skip
def test_what_would_hang_overflow_or_be_ignored_is_refused(section, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(SECTIONS[section], **{name: value})


def test_seeds_may_have_64_bits():
    assert RunConfig(seed=2**64 - 1).seed == 2**64 - 1


def test_a_damaged_file_of_settings_is_named_with_its_key(tmp_path):
    file = tmp_path / "config.json"
    for content, reason in (
        (b"{", r"config\.json must be JSON"),
        (b'{"model": {"layers": 2.5, "heads": 4, "width": 48}}', r"config\.json .*model\.layers"),
        (b'{"model": 3}', r"config\.json .*model"),
        (b"[" * 5000, r"config\.json"),
        (b"\xff", r"config\.json"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            load_config(file)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def get_config(", "cannot be run: SyntaxError"),
        (
            "from lumina_jax.config import Config\n\ndef get_config():\n    return Config(depth=3)",
            "TypeError at line 4",
        ),
        ("def get_config():\n    return 3", "must define get_config"),
        ("x = 1", "must define get_config"),
        ("import nothing_of_that_name", "ModuleNotFoundError at line 1"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_named_with_the_line(tmp_path, code, reason):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=reason) as error:
        load_config(tmp_path / "mine.py")
    assert "mine.py" in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("RunConfig(steps=10.5)", r"run\.steps=10\.5 must be of the type int, but is float"),
        ("RunConfig(steps='10')", r"run\.steps='10' must be of the type int, but is str"),
        ("SampleConfig(guidance='4')", r"sample\.guidance='4' must be of the type float, but is str"),
        ("OptimizerConfig(clip_norm=[1])", r"optimizer\.clip_norm=\[1\] must be of the type float or None"),
        ("RunConfig(name=None)", r"run\.name=None must be of the type str, but is NoneType"),
        ("FlowConfig(path='circle')", r"flow\.path='circle' must be one of 'linear', 'gvp', 'vp'"),
        ("DataConfig(media=3)", r"data\.media=3 must be one of 'pictures' \(PictureConfig\), 'clips'"),
        ("DataConfig(source='emoji')", r"write DataConfig\(source=EmojiConfig\(\)\)$"),
        ("EmojiConfig(kind='folder')", r"kind='folder' must be one of 'emoji'"),
        ("RunConfig(root=3)", r"run\.root=3 must be of the type str"),
    ],
)
def test_a_value_of_another_type_in_a_file_of_code_is_refused(tmp_path, code, reason):
    """In a process without the type checks of these tests."""
    (tmp_path / "mine.py").write_text(f"from lumina_jax.config import *\ndef get_config():\n    return {code}\n")
    script = f"from lumina_jax.config_files import load_config; load_config({str(tmp_path / 'mine.py')!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=CONFIGS[0].parents[1])
    assert re.search(reason, done.stderr.splitlines()[-1])


def fields_without_a_word(file):
    """Fields of dataclasses after which no docstring stands, from which --help is made."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            for field, following in zip(node.body, [*node.body[1:], None]):
                is_field = isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation)
                is_explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if is_field and not is_explained:
                    yield f"{node.name}.{field.target.id}"


def test_every_flag_is_explained():
    files = sorted((Path(__file__).parents[1] / "lumina_jax" / "config").glob("*.py"))
    missing = {name for file in files for name in fields_without_a_word(file)}
    assert {name for name in missing if not name.startswith(("Config.", "ModalityConfig."))} == set()
